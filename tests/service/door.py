"""A listener in this process, with the real guard and real TLS, before services that only note calls."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import grpc

from cairn.errors import CairnError
from cairn.identity.authority import Subject, issue, new_authority, new_key, new_request
from cairn.identity.credentials import Identity, load_identity
from cairn.identity.names import NodeName, Role
from cairn.identity.trust import PeerTrust
from cairn.identity.trust import load_pinned as load_pin
from cairn.transport.channel import dial
from cairn.transport.server import Server
from cairn.transport.steps import caller
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc, coordinator_pb2, coordinator_pb2_grpc
from cairn.v1 import round_pb2 as pb

FEDERATION = "ward"
SECONDS = 20.0
AGGREGATOR = NodeName(FEDERATION, Role.AGGREGATOR, "aggregator")
COORDINATOR = NodeName(FEDERATION, Role.COORDINATOR, "coordinator")
ALICE = NodeName(FEDERATION, Role.OWNER, "alice")
BOB = NodeName(FEDERATION, Role.OWNER, "bob")


@dataclass(frozen=True)
class Home:
    """The files of one node, as its settings name them."""

    directory: Path
    node: NodeName
    certificate: Path
    key: Path
    authority: Path

    def identity(self) -> Identity:
        return load_identity(self, self.node, datetime.now(UTC))


class Ward:
    """A federation's authority, and the homes of nodes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = new_authority(FEDERATION, datetime.now(UTC))

    def issued(self, node: NodeName, ends_in: timedelta = timedelta(days=1)) -> tuple[bytes, bytes]:
        """A new key, and a certificate for it."""
        key, subject = new_key(), Subject(node)
        begins = datetime.now(UTC) + ends_in - timedelta(days=1)
        return key, issue(self.authority, new_request(subject, key), subject, begins, 1)

    def home(self, node: NodeName) -> Home:
        directory = self.directory / node.name
        directory.mkdir()
        home = Home(directory, node, *(directory / name for name in ("a.crt", "a.key", "ca.crt")))
        home.authority.write_bytes(self.authority.certificate)
        self.renew(home)
        return home

    def renew(self, home: Home, node: NodeName | None = None) -> bytes:
        """Write a new key and certificate; returns the certificate."""
        key, certificate = self.issued(node or home.node)
        home.key.touch(0o600)
        home.key.write_bytes(key)
        home.certificate.write_bytes(certificate)
        return certificate

    def pinned(self, *certificates: bytes) -> PeerTrust:
        file = self.directory / "pinned.crt"
        file.write_bytes(b"".join(certificates))
        return load_pin(file, Role.AGGREGATOR, FEDERATION, datetime.now(UTC))


class Door(
    aggregator_pb2_grpc.IntakeServiceServicer,
    aggregator_pb2_grpc.ReleaseServiceServicer,
    aggregator_pb2_grpc.RecordServiceServicer,
    coordinator_pb2_grpc.InvitationServiceServicer,
):
    """Notes who called; `GetReceipt` and `Attend` answer when `released` is set."""

    def __init__(self, home: Home, **gate: Any) -> None:
        self.released = threading.Event()
        self.callers: list[NodeName] = []
        self.certificates: list[bytes] = []
        self.waiting = threading.Semaphore(0)
        self.refused: list[tuple[NodeName | None, str, CairnError]] = []
        gate.setdefault("refused", lambda *what: self.refused.append(what))
        self.listener = Server(home.identity(), long_callers=4, **gate)
        self.listener.add(aggregator_pb2_grpc.add_IntakeServiceServicer_to_server, self)
        self.listener.add(aggregator_pb2_grpc.add_ReleaseServiceServicer_to_server, self)
        self.listener.add(aggregator_pb2_grpc.add_RecordServiceServicer_to_server, self)
        self.listener.add(coordinator_pb2_grpc.add_InvitationServiceServicer_to_server, self)
        self.address = f"localhost:{self.listener.start('localhost:0')}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.released.set()
        self.listener.stop(0.0)

    def _note(self, context: grpc.ServicerContext) -> None:
        self.callers.append(caller(context))
        pem: Any = context.auth_context()["x509_pem_cert"][0]
        self.certificates.append(pem)

    def JoinRound(self, _request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's
        self._note(context)
        return aggregator_pb2.JoinRoundResponse(lease_seconds=7)

    def GetReceipt(self, _request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's
        self._note(context)
        self.waiting.release()
        self.released.wait(SECONDS)
        return aggregator_pb2.GetReceiptResponse()

    def SubmitUpdate(self, request_iterator: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's
        self._note(context)
        chunks = (part for part in request_iterator if isinstance(part, memoryview))
        nbytes = sum(map(len, chunks))
        return aggregator_pb2.SubmitUpdateResponse(receipt=pb.Signed(type=str(nbytes)))

    def SubmitModel(self, request_iterator: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's
        self._note(context)
        list(request_iterator)
        return aggregator_pb2.SubmitModelResponse()

    def AbortRound(self, _request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's
        self._note(context)
        return aggregator_pb2.AbortRoundResponse()

    def Attend(self, _request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802 - gRPC's
        self._note(context)
        yield coordinator_pb2.AttendResponse()
        self.released.wait(SECONDS)
        yield coordinator_pb2.AttendResponse(finished=coordinator_pb2.Finished(job="j"))


@dataclass
class Calls:
    """What a node calls over one channel that it has dialled once."""

    channel: grpc.Channel
    intake: Any = field(init=False)
    invitations: Any = field(init=False)

    def __post_init__(self) -> None:
        self.intake = aggregator_pb2_grpc.IntakeServiceStub(self.channel)
        self.invitations = coordinator_pb2_grpc.InvitationServiceStub(self.channel)

    def join(self) -> int:
        answer = self.intake.JoinRound(aggregator_pb2.JoinRoundRequest(), timeout=SECONDS)
        seconds: int = answer.lease_seconds
        return seconds


def dialled(door: Door, home: Home, pinned: PeerTrust | None = None) -> Calls:
    return Calls(dial(door.address, home.identity(), pinned))
