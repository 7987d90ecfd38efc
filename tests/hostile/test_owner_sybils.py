"""Colluders who place their updates so that a rule leans on one honest owner: the cap holds; and what they can do all the same.

The honest owner alone has a 1 in the first element, which so shows its weight.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation
from cairn.v1 import round_pb2 as pb
from tests.hostile.owners import an_aggregator
from tests.service.network import OWNERS, Network

FLOOR, SIZE, HALF = 3, 8, 4
MEDIAN = Aggregation(
    rule=pb.RULE_GEOMETRIC_MEDIAN, rule_numbers={"iterations": 40, "smoothing": 1e-6}
)
CLIPPING = Aggregation(rule=pb.RULE_CENTRED_CLIPPING, rule_numbers={"norm": 1, "iterations": 1})
Updates = Mapping[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    yield from an_aggregator(tmp_path_factory)


def released(
    network: Network, name: str, aggregation: Aggregation, updates: Updates
) -> NDArray[np.float64]:
    """What a round of a job of its own releases, which starts from zeros."""
    schema = Schema.of([TensorSpec(name, "F32", (SIZE,))])
    job = network.job(schema=schema, owners=OWNERS, floor=FLOOR, aggregation=aggregation)
    base = bytes(4 * SIZE)
    if aggregation.needs_base:
        job.bring(base)
    payloads = {owner: update.astype("<f4").tobytes() for owner, update in updates.items()}
    return np.frombuffer(job.run(payloads, base=base).payload, "<f4").astype(np.float64)


def all_around(spread: float) -> Updates:
    """In pairs on both sides of alice, so that she lies at the median."""
    generator = np.random.default_rng(1)
    alice = np.eye(SIZE, dtype=np.float32)[0]
    aside = generator.normal(0, spread, (2, SIZE)).astype(np.float32)
    aside[:, 0] = 0
    placed = [alice, *aside, *-aside]
    return dict(zip(OWNERS, placed, strict=True))


def far_away(spread: float) -> Updates:
    """In an element of their own, so that clipping leaves next to nothing of them where alice is."""
    alice, away, *_ = np.eye(SIZE, dtype=np.float32)
    return dict(zip(OWNERS, [alice, *[np.float32(spread) * away] * 4], strict=True))


@pytest.mark.parametrize("spread", [1.0, 1e6])
def test_sybils_all_around_an_owner_give_it_one_part_in_the_floor_and_no_more(
    network: Network, spread: float
) -> None:
    weight = released(network, f"around {spread}", MEDIAN, all_around(spread))[0]
    assert 0.999 / FLOOR < weight <= np.float32(1 / FLOOR)


@pytest.mark.parametrize("spread", [1e3, 1e6])
def test_sybils_far_beyond_the_norm_leave_an_owner_one_part_in_the_floor_and_no_more(
    network: Network, spread: float
) -> None:
    """Of all owners' weight: the base has the rest, which is known and hides nobody."""
    result = released(network, f"far {spread}", CLIPPING, far_away(spread))
    weights = result[0], result[1] / spread
    assert weights[0] / sum(weights) == pytest.approx(1 / FLOOR, rel=1e-5)


def test_as_many_colluders_as_the_floor_less_one_read_an_owner_where_all_others_are_moved_far(
    network: Network,
) -> None:
    """What is not prevented, and why a floor is to be above the number of owners that might collude.

    Bob and carol collude and send zeros. In a model made for it, dave and erin are moved far in the elements behind HALF.
    """
    generator = np.random.default_rng(2)
    placed = generator.normal(0, 1, (len(OWNERS), SIZE)).astype(np.float32)
    placed[1:3] = 0
    placed[3:, HALF:] *= 1e6
    placed[:3, HALF:] = 0
    result = released(network, "read", MEDIAN, dict(zip(OWNERS, placed, strict=True)))
    assert FLOOR * result[:HALF] == pytest.approx(placed[0, :HALF], abs=1e-4)
