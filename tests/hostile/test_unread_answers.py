"""Answers that nobody reads: bounded for each caller and in all, and ended; on every port."""

import re
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from cairn.identity.names import Role
from cairn.model.schema import Schema, TensorSpec
from cairn.transport import call_deadline
from cairn.transport.pools import LONG_CALLS_OF_ONE_CALLER
from cairn.transport.server import Server
from cairn.v1 import aggregator_pb2, coordinator_pb2
from cairn.v1.coordinator_pb2_grpc import add_InvitationServiceServicer_to_server
from coordinator.invitation_service import InvitationService
from coordinator.owner_sessions import OwnerSessions
from tests.hostile.checks import refusals, rss_bytes
from tests.hostile.hasty import IDLE_SECONDS
from tests.hostile.http2 import STREAMS, Connection, Crowd, trust
from tests.hostile.owners import HASTY, an_aggregator
from tests.hostile.promptness import is_healthy, prompt
from tests.scenarios.processes import PATIENCE, until
from tests.service.network import FEDERATION, OWNERS, Network, OpenRound

LIST_ENTRIES = "/cairn.v1.RecordService/ListEntries"
FETCH = "/cairn.v1.InvitationService/FetchModel"
COLLECT = "/cairn.v1.ReleaseService/CollectRelease"
CONNECTIONS = 40  # of each of three attackers
MOST_BYTES = 64 << 20  # that the aggregator may grow by, at any moment
MIB = 1 << 20
LARGE = Schema.of([TensorSpec("weight", "F32", (4 * MIB,))])  # 16 MiB
LONG_NAMES = tuple(f"owner-{number:04d}-{'x' * 45}" for number in range(400))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    yield from an_aggregator(tmp_path_factory, HASTY)


@pytest.fixture(scope="module")
def released(network: Network) -> OpenRound:
    """A release of 16 MiB, and a ledger of which a thousand entries have more than a MiB."""
    config = network.directory / "aggregator.toml"
    names = "".join(f'"{name}", ' for name in LONG_NAMES)
    config.write_text(re.sub(r"owners = \[", lambda found: found[0] + names, config.read_text()))
    cohort = sorted((*OWNERS, *LONG_NAMES))
    for _ in range(3):
        job = network.job(owners=cohort, floor=3)
        for number in range(1, 18):
            job.open(cohort, number=number).abort()
    opened = network.job(schema=LARGE, floor=3).open(OWNERS)
    for owner in OWNERS:
        opened.join(owner)
        opened.push(owner, bytes(LARGE.total_bytes))
    opened.ends()
    return opened


def unread(
    crowd: Crowd, network: Network, who: str, address: str, calls: dict[str, bytes], count: int
) -> list[Connection]:
    """Connections with as many calls as a node allows, which take none of the answers' bytes."""
    tls = trust(network.root, network.credentials[who])
    connections = crowd.connect(count, address, tls, window=0)
    for connection in connections:
        for number in range(STREAMS):
            connection.call(*list(calls.items())[number % len(calls)])
    crowd.keep(connections)
    return connections


def test_answers_that_nobody_reads_stay_small_and_are_ended(
    network: Network, released: OpenRound
) -> None:
    entries = aggregator_pb2.ListEntriesRequest(first=1, limit=1000).SerializeToString()
    collect = aggregator_pb2.CollectReleaseRequest(manifest_digest=released.digest, epoch=1)
    both = {LIST_ENTRIES: entries, COLLECT: collect.SerializeToString()}
    most = before = rss_bytes(network.node.pid)
    with (
        Crowd() as crowd,
        prompt(
            lambda: is_healthy(network, "bob", network.intake_at),
            lambda: is_healthy(network, "rival", network.release_at),
        ),
    ):
        held = [
            *unread(
                crowd, network, "alice", network.intake_at, {LIST_ENTRIES: entries}, CONNECTIONS
            ),
            *unread(
                crowd, network, "alice", network.release_at, {LIST_ENTRIES: entries}, CONNECTIONS
            ),
            *unread(crowd, network, "coordinator", network.release_at, both, CONNECTIONS),
        ]

        def are_closed() -> bool:
            nonlocal most
            most = max(most, rss_bytes(network.node.pid))
            return all(connection.closed for connection in held)

        until(are_closed, "every connection is closed", IDLE_SECONDS + PATIENCE)
    assert (most - before) >> 20 < MOST_BYTES >> 20
    assert [e for e in network.node.events("refused") if "nobody took the answer" in e["reason"]]
    assert {entry.facts["reason"] for entry in refusals(network.state)} >= {"TOO_MUCH"}


def test_a_model_that_its_owner_does_not_read_is_ended_at_the_coordinator_too(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_deadline, "IDLE_SECONDS", 1)
    payload = bytes(16 * MIB)
    service = InvitationService(FEDERATION, "job", ["alice"], OwnerSessions())
    service.offer(LARGE.digest(payload), memoryview(payload))
    listener = Server(network.identity("coordinator", Role.COORDINATOR), long_callers=1)
    listener.add(add_InvitationServiceServicer_to_server, service)
    listener.start(network.coordinator_at)
    fetch = coordinator_pb2.FetchModelRequest(digest=LARGE.digest(payload)).SerializeToString()
    try:
        with Crowd() as crowd, capture_logs() as logs:
            held = unread(crowd, network, "alice", network.coordinator_at, {FETCH: fetch}, 2)
            until(lambda: all(c.closed for c in held), "every connection is closed")
    finally:
        listener.stop(0.0)
    late = [
        line for line in logs if line.get("reason") == "nobody took the answer within 1 seconds"
    ]
    assert len(late) == LONG_CALLS_OF_ONE_CALLER
