"""An owner whose weight would make the average its own: it counts no more than its share."""

import itertools
import os
from collections.abc import Iterator
from fractions import Fraction

import grpc
import numpy as np
import pytest

from cairn.model.schema import DTYPES, FLOATS, Schema, TensorSpec
from cairn.v1 import round_pb2 as pb
from tests.hostile.memory import in_memory, may_read
from tests.hostile.owners import an_aggregator, joined_round
from tests.scenarios.processes import until
from tests.service.network import Network, OpenRound, refused

EXAMPLES = pb.WEIGHTING_EXAMPLES
COHORT = ("alice", "bob", "carol", "dave")
WEIGHTS = {"alice": 50_000, "bob": 50, "carol": 50, "dave": 50}
CAP = 149  # with 150 alice would have half of the weight
# Alice's update, and one that the others agree on and she does not.
HERS, THEIRS = (0, 1, 1, 0), (1, 0, 0, 1)
EVERY_TYPE = Schema.of([TensorSpec(dtype, dtype, (len(HERS),)) for dtype in DTYPES])


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    yield from an_aggregator(tmp_path_factory)


def weighted_round(network: Network) -> OpenRound:
    return joined_round(network, EVERY_TYPE, COHORT, weighting=EXAMPLES, examples=(50, 50_000))


def update(values: tuple[int, ...]) -> bytes:
    parts = [np.array(values, DTYPES[tensor.dtype]).tobytes() for tensor in EVERY_TYPE.tensors]
    return b"".join(parts)


def values_in(payload: bytes) -> dict[str, list[float]]:
    """The elements of each type."""
    found = {}
    for tensor, begin in zip(EVERY_TYPE.tensors, EVERY_TYPE.offsets, strict=False):
        values = np.frombuffer(payload, DTYPES[tensor.dtype], len(HERS), begin)
        found[tensor.dtype] = [float(value) for value in values]
    return found


@pytest.mark.parametrize(
    "order", [COHORT, COHORT[::-1], ("bob", "alice", "carol", "dave")], ids=str
)
def test_one_owner_with_nearly_all_examples_decides_no_element_of_any_type(
    network: Network, order: tuple[str, ...]
) -> None:
    opened = weighted_round(network)
    for owner in order:
        values = HERS if owner == "alice" else THEIRS
        metrics = {"loss": float(owner == "alice")}
        opened.push(owner, update(values), examples=WEIGHTS[owner], metrics=metrics)
    ended = opened.ends()
    hers = Fraction(CAP, CAP + 150)
    for dtype, released in values_in(ended.payload).items():
        if dtype in FLOATS:
            kind = DTYPES[dtype].type
            assert released == [float(kind(float(hers if v else 1 - hers))) for v in HERS], dtype
        else:
            assert released == list(map(float, THEIRS)), dtype
    assert dict(ended.statement.metrics) == pytest.approx({"loss": float(hers)}, rel=2**-12)
    assert opened.manifest.largest_share == 0.5


def test_one_owner_with_nearly_all_examples_decides_no_metric_of_an_evaluation(
    network: Network,
) -> None:
    opened = weighted_round(network)
    for owner in COHORT:
        opened.push(owner, update(THEIRS), examples=WEIGHTS[owner])
    base = opened.ends().payload
    evaluation = opened.job.open(COHORT, base, phase=pb.PHASE_EVALUATE)
    for owner in COHORT:
        evaluation.join(owner)
        metrics = {"loss": float(owner == "alice")}
        evaluation.push(owner, b"", examples=WEIGHTS[owner], metrics=metrics)
    loss = pytest.approx({"loss": CAP / (CAP + 150)}, rel=2**-12)
    assert dict(evaluation.ends().statement.metrics) == loss


def test_one_owner_that_moves_the_cap_from_job_to_job_makes_no_second_average_of_one_base(
    network: Network,
) -> None:
    """With dave's 50, 60 and 70 examples alice counts for 149, 159 and 169: equations for her alone."""
    first, second = (
        network.job(schema=EVERY_TYPE, weighting=EXAMPLES, examples=(50, 50_000)) for _ in range(2)
    )
    opened = first.open(COHORT)
    for owner in COHORT:
        opened.join(owner)
        opened.push(owner, update(HERS), examples=WEIGHTS[owner])
    assert opened.ends().payload
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "capped", "COHORT_DIFFERENCE"):
        second.open(COHORT, first.first_base)


def test_the_same_updates_give_the_same_bits_in_every_order_also_where_a_weight_is_capped(
    network: Network,
) -> None:
    generator = np.random.default_rng(8)
    updates = {owner: generator.integers(0, 2, len(HERS)).tolist() for owner in COHORT}
    results = set()
    for order in itertools.permutations(COHORT):
        opened = weighted_round(network)
        for owner in order:
            opened.push(owner, update(tuple(updates[owner])), examples=WEIGHTS[owner])
        results.add(opened.ends().payload)
    assert len(results) == 1


def test_an_update_that_is_held_back_is_pushed_again_declined_and_refused_as_any_other(
    network: Network,
) -> None:
    opened = weighted_round(network)
    receipt = opened.push("alice", update(HERS), examples=WEIGHTS["alice"])
    assert opened.push("alice", update(HERS), examples=WEIGHTS["alice"]) == receipt
    assert opened.receipt("alice") == receipt
    assert opened.join("alice").update_accepted
    opened.abort()
    again = weighted_round(network)
    for owner in ("bob", "carol", "dave"):
        again.push(owner, update(THEIRS), examples=50)
    again.decline("alice", pb.REASON_STOPPING)
    assert again.ends().payload == update(THEIRS)


@pytest.mark.parametrize("ending", ["released", "aborted"])
def test_an_update_that_is_held_back_does_not_outlive_its_round(
    network: Network, ending: str
) -> None:
    if not may_read(network.node.pid):
        pytest.skip("this account may not read the memory of its own processes; root may")
    schema = Schema.of([TensorSpec("t", "U8", (1 << 18,))])
    opened = joined_round(network, schema, COHORT, weighting=EXAMPLES, examples=(1, 1000))
    secret = os.urandom(32)
    needles = {"alice's update": secret}
    opened.push("alice", bytes(1 << 17) + secret + bytes((1 << 17) - 32), examples=1000)
    for owner in ("bob", "carol"):
        opened.push(owner, bytes(1 << 18), examples=1)
    assert in_memory(network.node.pid, needles).keys() == needles.keys()
    if ending == "released":
        opened.push("dave", bytes(1 << 18), examples=1)
        assert opened.ends().statement.contributors == len(COHORT)
    else:
        opened.abort()
    # gRPC keeps the last 8 KiB of a connection until that is idle.
    until(lambda: not in_memory(network.node.pid, needles), "alice's update is erased")
