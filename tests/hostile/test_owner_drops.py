"""An owner that joins and drops, or never pushes: it costs its lease or the deadline, and no more.

The clock of the aggregator stands still but where a test puts it on.
"""

from collections.abc import Iterator
from threading import Event

import grpc
import numpy as np
import pytest

from cairn.v1 import aggregator_pb2
from tests.chaos.puppet import LEASE_SECONDS, Puppet
from tests.hostile.checks import ONE_HOT, rss_bytes
from tests.hostile.owners import (
    hot,
    joined_round,
    others_than,
    silent_after,
)
from tests.service.network import SECONDS, refused

MIB = 1 << 20


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Puppet]:
    network = Puppet(tmp_path_factory.mktemp("drops"), floor=3)
    yield network
    network.stop()


def times(number: int, owner: str) -> bytes:
    """Another update in every round: two releases of one base must not differ by a single owner."""
    return (np.frombuffer(hot(owner), "<f4") * np.float32(number)).tobytes()


def test_an_owner_that_joins_and_drops_in_every_round_costs_its_lease_and_no_more(
    network: Puppet,
) -> None:
    job = network.job(schema=ONE_HOT, rounds=4, deadline=600)
    base = None
    before = rss_bytes(network.node.pid)
    for number in range(1, 5):
        opened = job.open(["alice", "bob", "carol", "dave"], base, number)
        for owner in ("alice", "bob", "carol", "dave"):
            opened.join(owner)
        goes_on = Event()
        stream = silent_after(opened.parts(hot("dave"))[:2], goes_on)
        dropped = network.intake("dave").SubmitUpdate.future(stream, timeout=SECONDS)
        dropped.initial_metadata()  # its turn has come
        for owner in ("alice", "bob", "carol"):
            opened.push(owner, times(number, owner))
        dropped.cancel()
        goes_on.set()
        network.advance(LEASE_SECONDS)
        ended = opened.ends()
        assert ended.exclusions == {"dave": "LEASE_EXPIRED"}
        base = ended.payload
        third = np.float32(number / 3)
        assert base == np.array([third, third, third, 0, 0], "<f4").tobytes()
    assert rss_bytes(network.node.pid) - before < 32 * MIB


def test_two_that_drop_in_every_round_end_it_below_the_floor(network: Puppet) -> None:
    job = network.job(schema=ONE_HOT, deadline=600)
    for number in (1, 2, 3):
        opened = job.open(["alice", "bob", "carol", "dave"], None, number)
        for owner in ("alice", "bob", "carol", "dave"):
            opened.join(owner)
        for owner in ("alice", "bob"):
            opened.push(owner, hot(owner))
        network.advance(LEASE_SECONDS)
        ended = opened.ends()
        assert (ended.reason, ended.payload) == ("BELOW_FLOOR", b"")


def test_an_owner_that_keeps_its_lease_and_never_pushes_costs_the_deadline_and_no_more(
    network: Puppet,
) -> None:
    opened = joined_round(network, deadline=10 * LEASE_SECONDS)
    for owner in others_than("erin"):
        opened.push(owner, hot(owner))
    for _ in range(20):
        opened.join("erin")
        network.advance(LEASE_SECONDS / 2)
    ended = opened.ends()
    assert ended.state == aggregator_pb2.ROUND_STATE_RELEASED
    assert ended.exclusions == {"erin": "DEADLINE"}
    with refused(grpc.StatusCode.FAILED_PRECONDITION, reason="ROUND_ENDED"):
        opened.join("erin")
