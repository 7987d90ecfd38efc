"""A coordinator that takes one average apart: into the values that its owners have, and not their sum alone."""

from collections.abc import Mapping
from fractions import Fraction
from math import prod

import pytest

from cairn.v1 import round_pb2 as pb
from tests.hostile.attacks import COHORT
from tests.service.network import Network

TESTED = {
    "alice": 1009,
    "bob": 1013,
    "carol": 1019,
}  # patients whom each tests with, as everybody knows


def taken_apart(mean: float) -> dict[str, int]:
    """The numbers c with mean = (sum of c / n) / 3, by the Chinese remainder theorem: there is one solution."""
    product = prod(TESTED.values())
    total = round(Fraction(mean) * len(TESTED) * product)
    return {who: total * pow(product // n, -1, n) % n for who, n in TESTED.items()}


def mean_accuracy(network: Network, right: Mapping[str, int]) -> float:
    """The metric of an evaluation in which each owner reports the share that it has right."""
    job = network.job(floor=3)
    trained = job.open(COHORT)
    for owner in COHORT:
        trained.join(owner)
        trained.push(owner, bytes(job.spec.schema.total_bytes))
    evaluated = job.open(COHORT, trained.ends().payload, phase=pb.PHASE_EVALUATE)
    for owner in COHORT:
        evaluated.join(owner)
        evaluated.push(owner, b"", metrics={"accuracy": right[owner] / TESTED[owner]})
    return evaluated.ends().statement.metrics["accuracy"]


def test_an_average_of_accuracies_cannot_be_taken_apart_into_those_of_its_owners(
    network: Network,
) -> None:
    right = {"alice": 485, "bob": 640, "carol": 594}
    exact = sum(right[owner] / TESTED[owner] for owner in COHORT) / 3
    assert taken_apart(exact) == right  # so precise an average would tell
    mean = mean_accuracy(network, right)
    assert mean == pytest.approx(exact, rel=2**-12)
    others = {"alice": 500, "bob": 625, "carol": 594}
    assert mean_accuracy(network, others) == mean
