"""What a coordinator tells owners, and refuses them, over the real network."""

from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from cairn.identity.credentials import load_identity
from cairn.identity.names import NodeName, Role
from cairn.protocol.messages import PROTOCOL
from cairn.transport.server import Server
from cairn.v1 import coordinator_pb2
from cairn.v1.coordinator_pb2_grpc import (
    InvitationServiceStub,
    add_InvitationServiceServicer_to_server,
)
from coordinator.invitation_service import InvitationService
from coordinator.owner_sessions import OwnerSessions
from tests.scenarios.processes import free_port
from tests.service.network import FEDERATION, SECONDS, Network, refused

DIGEST = bytes(range(32))
PAYLOAD = bytes(range(256)) * 10_000  # 2.5 MB: three chunks
INVITATION = coordinator_pb2.AttendResponse(
    invitation=coordinator_pb2.Invitation(job_spec=b"a job")
)
FINISHED = coordinator_pb2.AttendResponse(finished=coordinator_pb2.Finished(job="job"))


class Door:
    """The coordinator's door for the owners alice and bob."""

    def __init__(self, network: Network) -> None:
        home = network.directory / "coordinator"
        files = SimpleNamespace(
            certificate=home / "node.crt", key=home / "node.key", authority=home / "authority.crt"
        )
        node = NodeName(FEDERATION, Role.COORDINATOR, "coordinator")
        self.network = network
        self.sessions = OwnerSessions()
        self.service = InvitationService(FEDERATION, "job", ["alice", "bob"], self.sessions)
        self.listener = Server(load_identity(files, node, datetime.now(UTC)), long_callers=4)
        self.listener.add(add_InvitationServiceServicer_to_server, self.service)
        self.address = f"127.0.0.1:{free_port()}"
        self.listener.start(self.address)

    def stub(self, owner: str) -> Any:
        return InvitationServiceStub(self.network.channel(owner, self.address))

    def attend(self, owner: str, federation: str = FEDERATION, protocol: int = PROTOCOL) -> Any:
        request = coordinator_pb2.AttendRequest(federation=federation, protocol=protocol)
        return self.stub(owner).Attend(request, timeout=SECONDS)

    def fetch(self, owner: str, digest: bytes, offset: int = 0) -> tuple[int, list[bytes]]:
        request = coordinator_pb2.FetchModelRequest(digest=digest, offset=offset)
        first, *rest = self.stub(owner).FetchModel(request, timeout=SECONDS)
        return first.header.total_bytes, [part.chunk for part in rest]


@pytest.fixture
def door(network: Network) -> Iterator[Door]:
    door = Door(network)
    yield door
    door.sessions.dismiss(None, 5)
    door.listener.stop(0.0)


def test_an_owner_that_the_job_does_not_list_is_turned_away(door: Door) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "does not list carol"):
        next(door.attend("carol"))
    with refused(grpc.StatusCode.NOT_FOUND, "does not list carol"):
        door.fetch("carol", DIGEST)


def test_an_owner_of_another_federation_or_protocol_is_turned_away(door: Door) -> None:
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "belongs to the federation ward"):
        next(door.attend("alice", federation="elsewhere"))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "version", "OTHER_VERSION"):
        next(door.attend("alice", protocol=PROTOCOL - 1))


def test_an_owner_attends_until_the_job_is_finished(door: Door) -> None:
    events = door.attend("alice")
    assert door.sessions.wait_for_all(["alice"], SECONDS) == ["alice"]
    door.sessions.invite(["alice"], INVITATION)
    assert next(events) == INVITATION
    door.sessions.dismiss(FINISHED, 5)
    assert list(events) == [FINISHED]


def test_a_second_stream_ends_the_first_and_brings_the_invitation_again(door: Door) -> None:
    first = door.attend("alice")
    door.sessions.wait_for_all(["alice"], SECONDS)
    door.sessions.invite(["alice"], INVITATION)
    second = door.attend("alice")
    assert list(first) == [INVITATION]
    assert next(second) == INVITATION


def test_an_owner_that_leaves_is_missed(door: Door) -> None:
    events = door.attend("alice")
    door.sessions.wait_for_all(["alice"], SECONDS)
    events.cancel()
    with door.sessions._changed:
        assert door.sessions._changed.wait_for(lambda: not door.sessions._streams, SECONDS)


def test_the_model_is_fetched_whole_or_from_an_offset(door: Door) -> None:
    door.service.offer(DIGEST, memoryview(PAYLOAD))
    total, chunks = door.fetch("alice", DIGEST)
    assert (total, b"".join(chunks)) == (len(PAYLOAD), PAYLOAD)
    assert max(map(len, chunks)) == 1 << 20
    for offset in (1, 1 << 20, len(PAYLOAD) - 1, len(PAYLOAD)):
        total, chunks = door.fetch("bob", DIGEST, offset)
        assert (total, b"".join(chunks)) == (len(PAYLOAD), PAYLOAD[offset:])


def test_a_model_that_the_coordinator_does_not_hold_is_not_found(door: Door) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "does not hold"):
        door.fetch("alice", DIGEST)
    door.service.offer(DIGEST, memoryview(PAYLOAD))
    with refused(grpc.StatusCode.NOT_FOUND, "does not hold"):
        door.fetch("alice", bytes(32))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "digest"):
        door.fetch("alice", b"short")


def test_an_offset_behind_the_last_byte_is_refused(door: Door) -> None:
    door.service.offer(DIGEST, memoryview(PAYLOAD))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, f"has {len(PAYLOAD)} bytes"):
        door.fetch("alice", DIGEST, len(PAYLOAD) + 1)
