"""A coordinator that measures how much memory another's open round has taken: it grows with owners' values.

Bob works with the coordinators. Which of alice's elements make the sums of both longer depends on alice's values,
so how far they grow once she has pushed is a number about her alone. Nothing of it counts as a failure.
"""

from collections.abc import Iterator
from contextlib import suppress

import grpc
import numpy as np
import pytest

from cairn.model.schema import Schema, TensorSpec
from tests.hostile.owners import joined_round
from tests.service.network import OWNERS, Network, OpenRound

MIB = 1 << 20
ELEMENTS = 4 * MIB
MODEL = Schema.of([TensorSpec("t", "F32", (ELEMENTS,))])  # 16 MiB, and 33 of sums
MEGABYTES = 200
STEP = 1 << 16  # elements of the rival's model: a round of it takes 11 bytes for each
COHORT = OWNERS[:3]
MANY = ELEMENTS // 16  # these take 2 MiB more, where each needs a second number


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    directory = tmp_path_factory.mktemp("memory")
    network = Network(
        directory, floor=3, lease_seconds=600, memory_megabytes=MEGABYTES, updates_in_flight=3
    )
    yield network
    network.stop()


def is_opened(network: Network, steps: int) -> bool:
    """Whether the rival is given a round of a model of this size; the round is ended at once."""
    schema = Schema.of([TensorSpec("t", "U8", (steps * STEP,))])
    with suppress(grpc.RpcError):
        network.job(schema=schema, coordinator="rival", floor=3).open(COHORT).abort()
        return True
    return False


def size_that_fits(network: Network) -> int:
    low, high = 0, MEGABYTES * MIB // STEP
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_opened(network, middle) else (low, middle)
    return low


def with_alices(network: Network, value: float) -> OpenRound:
    """A round in which bob, and then alice, who has this value in some of her elements, have pushed."""
    opened = joined_round(network, MODEL, COHORT)
    opened.push("bob", np.full(ELEMENTS, 0.9e9, "<f4").tobytes())
    alices = np.zeros(ELEMENTS, "<f4")
    alices[:MANY] = value
    opened.push("alice", alices.tobytes())
    return opened


def test_what_memory_is_left_for_others_does_not_depend_on_the_values_of_an_open_round(
    network: Network,
) -> None:
    opened = with_alices(network, 1.0)
    fits = size_that_fits(network)
    opened.abort()
    opened = with_alices(network, 1.1e-3)
    assert not is_opened(network, fits + 1)
    assert is_opened(network, fits)
    # Of which there are three for each coordinator.
    assert opened.ends().reason == "TOO_MUCH"
