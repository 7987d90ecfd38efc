"""Owners whose values lie so far apart that exact sums of them take many times the memory of others."""

import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from cairn.model.schema import Schema, TensorSpec
from cairn.v1 import aggregator_pb2
from tests.hostile.owners import joined_round
from tests.service.network import OWNERS, Network

MIB = 1 << 20
ELEMENTS = 4 * MIB
MODEL = Schema.of([TensorSpec("t", "F32", (ELEMENTS,))])  # 16 MiB, and 33 of sums
MEGABYTES = 90  # for one round, with all the buffers that its owners can use, and 8 more
COHORT = OWNERS[:3]
SLACK = 24 * MIB  # of Python, gRPC and the blocks that a sum is worked on in
FAR_APART = dict(zip(COHORT, (0.9e9, 1.1e-3, 1.1e-27), strict=True))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    directory = tmp_path_factory.mktemp("sums")
    network = Network(
        directory, floor=3, lease_seconds=600, memory_megabytes=MEGABYTES, updates_in_flight=3
    )
    yield network
    network.stop()


def peak_bytes(network: Network) -> int:
    status = Path(f"/proc/{network.node.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


def constant(value: float) -> bytes:
    return np.full(ELEMENTS, value, "<f4").tobytes()


def exhausted(network: Network) -> int:
    """How many rounds have ended because their sums had no memory."""
    return len(network.node.events("round cannot go on"))


def exhaust(network: Network) -> None:
    """Let one more round end so."""
    before = exhausted(network)
    opened = joined_round(network, MODEL, COHORT)
    for owner, value in FAR_APART.items():
        opened.push(owner, constant(value))
        if exhausted(network) > before:
            break
    ended = opened.ends()
    assert (ended.state, ended.reason) == (aggregator_pb2.ROUND_STATE_ABORTED, "TOO_MUCH")
    assert ended.exclusions == {}


def test_values_that_lie_far_apart_take_no_more_memory_than_the_aggregator_has(
    network: Network,
) -> None:
    idle = peak_bytes(network)
    for _ in range(2):
        exhaust(network)
    assert "memory_megabytes" in network.node.events("round cannot go on")[0]["error"]
    assert peak_bytes(network) - idle < MEGABYTES * MIB + SLACK, (peak_bytes(network) - idle) / MIB
    honest = joined_round(network, MODEL, COHORT)
    for number, owner in enumerate(COHORT):
        honest.push(owner, constant(0.5 + number / 4))
    assert honest.ends().payload == constant(0.75)


def test_a_coordinator_reads_off_such_rounds_no_more_than_three_times_whether_memory_was_enough(
    network: Network,
) -> None:
    while exhausted(network) < 3:
        exhaust(network)
    with pytest.raises(grpc.RpcError) as refusal:
        joined_round(network, MODEL, COHORT)
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "memory_megabytes" in str(refusal.value.details())
