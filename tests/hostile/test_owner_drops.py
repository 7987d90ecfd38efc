"""An owner that joins and drops, or never pushes: it costs its lease or the deadline, and no more."""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import grpc
import numpy as np
import pytest

from cairn.protocol.messages import PROTOCOL
from cairn.v1 import aggregator_pb2
from tests.hostile.checks import ONE_HOT, rss_bytes
from tests.hostile.owners import (
    hot,
    joined_round,
    others_than,
    silent_after,
)
from tests.service.network import SECONDS, Network

PROMPT = 5.0  # what a round may take beyond its lease or deadline
MIB = 1 << 20


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A lease of one second."""
    network = Network(tmp_path_factory.mktemp("hasty"), floor=3, lease_seconds=1)
    yield network
    network.stop()


def times(number: int, owner: str) -> bytes:
    """Another update in every round: two releases of one base must not differ by a single owner."""
    return (np.frombuffer(hot(owner), "<f4") * np.float32(number)).tobytes()


def test_an_owner_that_joins_and_drops_in_every_round_costs_its_lease_and_no_more(
    hasty: Network,
) -> None:
    job = hasty.job(schema=ONE_HOT, rounds=4, deadline=600)
    base = None
    before = rss_bytes(hasty.node.pid)
    for number in range(1, 5):
        opened = job.open(["alice", "bob", "carol", "dave"], base, number)
        for owner in ("alice", "bob", "carol", "dave"):
            opened.join(owner)
        goes_on = Event()
        stream = silent_after(opened.parts(hot("dave"))[:2], goes_on)
        dropped = hasty.intake("dave").SubmitUpdate.future(stream, timeout=SECONDS)
        begun = time.monotonic()
        for owner in ("alice", "bob", "carol"):
            opened.push(owner, times(number, owner))
        dropped.cancel()
        goes_on.set()
        ended = opened.ends()
        assert time.monotonic() - begun < 1 + PROMPT
        assert ended.exclusions == {"dave": "LEASE_EXPIRED"}
        base = ended.payload
        third = np.float32(number / 3)
        assert base == np.array([third, third, third, 0, 0], "<f4").tobytes()
    assert rss_bytes(hasty.node.pid) - before < 32 * MIB


def test_two_that_drop_in_every_round_end_it_below_the_floor(hasty: Network) -> None:
    job = hasty.job(schema=ONE_HOT, deadline=600)
    for number in (1, 2, 3):
        opened = job.open(["alice", "bob", "carol", "dave"], None, number)
        for owner in ("alice", "bob", "carol", "dave"):
            opened.join(owner)
        for owner in ("alice", "bob"):
            opened.push(owner, hot(owner))
        ended = opened.ends()
        assert (ended.reason, ended.payload) == ("BELOW_FLOOR", b"")


def test_an_owner_that_keeps_its_lease_and_never_pushes_costs_the_deadline_and_no_more(
    tmp_path: Path,
) -> None:
    network = Network(tmp_path, floor=3, lease_seconds=600)
    opened = joined_round(network, deadline=2)
    begun = time.monotonic()
    for owner in others_than("erin"):
        opened.push(owner, hot(owner))
    stub = network.intake("erin")
    request = aggregator_pb2.JoinRoundRequest(
        manifest_digest=opened.digest, join=True, protocol=PROTOCOL
    )
    watched = opened.watch()
    ended = False
    while not ended:
        try:
            stub.JoinRound(request, timeout=SECONDS)
        except grpc.RpcError:
            ended = True
    assert list(watched)[-1].state == aggregator_pb2.ROUND_STATE_RELEASED
    assert time.monotonic() - begun < 2 + PROMPT
    assert opened.ends().exclusions == {"erin": "DEADLINE"}
    network.stop()
