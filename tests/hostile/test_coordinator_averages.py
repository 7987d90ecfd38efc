"""A coordinator that takes one average apart: into the values that its owners have, and not their sum alone."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from math import prod

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from cairn.model.schema import Schema, TensorSpec
from cairn.model.update_encoding import UpdateLayout
from cairn.v1 import round_pb2 as pb
from cairn.v1.aggregator_pb2 import UpdateCommit
from owner_node.updates.encoder import Change, encode
from tests.hostile.attacks import COHORT
from tests.hostile.owners import Part
from tests.service.network import Job, Network

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


LAYOUTS = {
    # Of two models, so that their releases are not compared.
    weighting: UpdateLayout(Schema.of([TensorSpec(name, "F32", (4, 256))]), pb.ENCODING_INT8_DELTAS)
    for weighting, name in ((pb.WEIGHTING_EQUAL, "equal"), (pb.WEIGHTING_EXAMPLES, "examples"))
}
ZEROS = bytes(4 * 4 * 256)
EXAMPLES = {"alice": 811, "bob": 653, "carol": 600}
OWN_SIZES = {"alice": 1.0e-3, "bob": 1.1e-3}  # carol works with the coordinator, and sends zeros


def released_mean(
    network: Network, deltas: Mapping[str, bytes], weighting: "pb.Weighting"
) -> NDArray[np.float64]:
    """The mean of int8 deltas from a base of zeros, as it is released."""
    layout = LAYOUTS[weighting]
    spec = network.job(schema=layout.schema, floor=3, weighting=weighting).spec
    spec = replace(spec, encoding=pb.ENCODING_INT8_DELTAS)
    job = Job(network, replace(spec, name=f"{spec.name}-deltas"), "coordinator")
    job.register()
    opened = job.open(COHORT)
    for owner in COHORT:
        opened.join(owner)
        opened.push(owner, ZEROS)
    assert opened.ends().payload == ZEROS
    opened = job.open(COHORT, ZEROS, number=2)
    assert opened.manifest.encoding == pb.ENCODING_INT8_DELTAS
    for owner, payload in deltas.items():
        digest = layout.digest(payload)
        opened.join(owner)
        opened.submit(
            owner,
            [
                Part(header=opened.header(total_bytes=len(payload), examples=EXAMPLES[owner])),
                Part(chunk=payload),
                Part(commit=UpdateCommit(payload_digest=digest)),
            ],
        )
    return np.frombuffer(opened.ends().payload, "<f4").astype(np.float64)


def pairs_that_give(mean: float, scales: NDArray[np.float64], weights: NDArray[np.float64]) -> int:
    """How many pairs of int8 deltas of two owners have this mean, in as many bits as it is said."""
    quanta = np.arange(-127.0, 128.0)
    shares = weights / weights.sum()
    means = np.add.outer(quanta * scales[0] * shares[0], quanta * scales[1] * shares[1])
    in_bfloat16 = means.astype(ml_dtypes.bfloat16).astype(np.float64) == mean
    in_binary32 = np.abs(means - mean) <= abs(mean) * 2.0**-22
    return int((in_bfloat16 if in_bfloat16.any() else in_binary32).sum())


@pytest.mark.parametrize("weighting", [pb.WEIGHTING_EQUAL, pb.WEIGHTING_EXAMPLES])
def test_int8_deltas_of_two_owners_cannot_be_taken_out_of_their_average(
    network: Network, weighting: "pb.Weighting"
) -> None:
    """Even where the coordinator knows scales and weights, many pairs of deltas give the mean that it sees."""
    random = np.random.default_rng(1)
    layout = LAYOUTS[weighting]
    deltas = {"carol": bytes(layout.total_bytes)}
    for owner, size in OWN_SIZES.items():
        update = (random.standard_normal(len(ZEROS) // 4) * size).astype("<f4")
        payload = bytearray(layout.total_bytes)
        encode(layout, Change(ZEROS, update.tobytes()), payload)
        deltas[owner] = bytes(payload)
    mean = released_mean(network, deltas, weighting)
    (part,) = layout.segments
    scales = np.array([part.scales(deltas[owner]) for owner in OWN_SIZES], np.float64)
    weighs = weighting == pb.WEIGHTING_EXAMPLES
    weights = np.array([EXAMPLES[owner] if weighs else 1 for owner in COHORT], np.float64)
    found = [
        pairs_that_give(mean[element], scales[:, element // 256], weights)
        for element in range(0, len(mean), 8)
    ]
    assert np.median(found) > 32
