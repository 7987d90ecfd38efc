"""The owner's calls to the coordinator. Makes `cairn.v1.InvitationService`'s."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from cairn import __version__
from cairn.errors import InvalidMessage, PeerUntrusted, Unavailable
from cairn.model.schema import CHUNK_BYTES
from cairn.protocol.messages import PROTOCOL
from cairn.runtime.failpoints import failpoint
from cairn.transport.idle_timeout import cancel_when_idle
from cairn.transport.receiver import PayloadReceiver
from cairn.transport.status import translated
from cairn.v1 import coordinator_pb2, coordinator_pb2_grpc

_NEW_STREAM_EVERY_SECONDS = 3600


class CoordinatorClient:
    """Speaks to the coordinator of this owner's file."""

    def __init__(self, channel: grpc.Channel, distrusted: Callable[[], object]) -> None:
        """`distrusted` is told where the coordinator shows a certificate that is not trusted."""
        self._distrusted = distrusted
        self._stub = coordinator_pb2_grpc.InvitationServiceStub(channel)
        self._lock = threading.Lock()
        self._stream: grpc.Call | None = None
        self._closed = False

    def attend(self, federation: str) -> Iterator[coordinator_pb2.AttendResponse]:
        """Yield what the coordinator says; ends after `finished` or `close`.

        Raises Unavailable where the stream breaks off.
        """
        request = coordinator_pb2.AttendRequest(
            federation=federation, protocol=PROTOCOL, software=__version__
        )
        with self._lock:
            if self._closed:
                return
            stream = self._stub.Attend(request, timeout=_NEW_STREAM_EVERY_SECONDS)
            self._stream = stream
        with self._translated():
            yield from stream

    def fetch(self, digest: bytes, incoming: PayloadReceiver, seconds: float) -> None:
        """Fetch the model of this digest, from where an earlier call broke off.

        Raises Unavailable where this one breaks off, and InvalidMessage where the bytes are not that model.
        """
        request = coordinator_pb2.FetchModelRequest(digest=digest, offset=incoming.offset)
        with self._translated():
            parts = self._stub.FetchModel(request, timeout=seconds)
            with cancel_when_idle(parts.cancel) as heard:
                first = next(parts, None)
                if isinstance(first, memoryview) or not (first and first.HasField("header")):
                    raise InvalidMessage("the model does not begin with its header")
                if first.header.total_bytes != incoming.total:
                    raise InvalidMessage("the model has another size than the job's schema")
                for part in parts:
                    if not isinstance(part, memoryview) or not 0 < len(part) <= CHUNK_BYTES:
                        raise InvalidMessage(f"a chunk of the model has 1 to {CHUNK_BYTES} bytes")
                    incoming.write(part)
                    heard()
                    failpoint("owner.fetch.partial")
        if incoming.missing:
            raise Unavailable("the model's transfer broke off")
        if incoming.digest() != digest:
            raise InvalidMessage(
                "the coordinator sent another model than the aggregator's manifest names"
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with translated():
                yield
        except PeerUntrusted:
            self._distrusted()
            raise

    def close(self) -> None:
        """End the open stream, from another thread."""
        with self._lock:
            self._closed = True
            if self._stream is not None:
                self._stream.cancel()
