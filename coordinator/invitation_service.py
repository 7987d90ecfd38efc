"""The owners' door: invitations and the model. Receives `cairn.v1.InvitationService`."""

import threading
from collections.abc import Collection, Iterator

import grpc

from cairn.errors import InvalidMessage, NotFound, WrongState
from cairn.protocol.messages import check_digest, check_protocol
from cairn.runtime.failpoints import failpoint
from cairn.transport.framing import chunks_of
from cairn.transport.steps import caller
from cairn.v1 import coordinator_pb2, coordinator_pb2_grpc
from coordinator.owner_sessions import OwnerSessions


class InvitationService(coordinator_pb2_grpc.InvitationServiceServicer):
    """Serves the owners of one job."""

    def __init__(
        self, federation: str, job: str, owners: Collection[str], sessions: OwnerSessions
    ) -> None:
        self._federation = federation
        self._job = job
        self._owners = frozenset(owners)
        self._sessions = sessions
        self._lock = threading.Lock()
        self._base = (b"", memoryview(b""))

    def offer(self, digest: bytes, payload: memoryview) -> None:
        """Let owners fetch this model, and no other."""
        with self._lock:
            self._base = (digest, payload)

    def Attend(  # noqa: N802 - gRPC calls it so
        self, request: coordinator_pb2.AttendRequest, context: grpc.ServicerContext
    ) -> Iterator[coordinator_pb2.AttendResponse]:
        owner = caller(context).name
        if request.federation != self._federation:
            raise WrongState(f"this coordinator belongs to the federation {self._federation}")
        check_protocol(request.protocol, request.software)
        self._check_listed(owner)
        stream = self._sessions.enter(owner)
        if not context.add_callback(lambda: self._sessions.leave(owner, stream)):
            self._sessions.leave(owner, stream)
        while (event := stream.next()) is not None:
            yield event

    def FetchModel(  # noqa: N802 - gRPC calls it so
        self, request: coordinator_pb2.FetchModelRequest, context: grpc.ServicerContext
    ) -> Iterator[coordinator_pb2.FetchModelResponse | memoryview]:
        self._check_listed(caller(context).name)
        with self._lock:
            digest, payload = self._base
        if check_digest(request.digest, "digest") != digest:
            raise NotFound("this coordinator does not hold a model of that digest now")
        if request.offset > len(payload):
            raise InvalidMessage(f"the model has {len(payload)} bytes")
        header = coordinator_pb2.FetchModelHeader(total_bytes=len(payload))
        yield coordinator_pb2.FetchModelResponse(header=header)
        failpoint("coordinator.fetch.partial")
        yield from chunks_of(payload, request.offset)

    def _check_listed(self, owner: str) -> None:
        if owner not in self._owners:
            raise NotFound(f"the job {self._job} does not list {owner} among its owners")
