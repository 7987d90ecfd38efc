"""The owner's calls to the coordinator. Makes `cairn.v1.InvitationService`'s."""

import threading
from collections.abc import Iterator

import grpc

from cairn import __version__
from cairn.errors import InvalidMessage, Unavailable
from cairn.messages import PROTOCOL
from cairn.rpc import translated
from cairn.tensors import CHUNK_BYTES, Schema
from cairn.v1 import coordinator_pb2, coordinator_pb2_grpc

_ATTEND_SECONDS = 3600  # then the stream is opened again


class CoordinatorClient:
    """Speaks to the coordinator of this owner's file."""

    def __init__(self, channel: grpc.Channel) -> None:
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
            stream = self._stub.Attend(request, timeout=_ATTEND_SECONDS)
            self._stream = stream
        with translated():
            yield from stream

    def fetch(self, digest: bytes, schema: Schema, into: memoryview, seconds: float) -> None:
        """Fetch the model of this digest. Raises InvalidMessage where the bytes are not that model."""
        request = coordinator_pb2.FetchModelRequest(digest=digest)
        with translated():
            parts = self._stub.FetchModel(request, timeout=seconds)
            first = next(parts, None)
            if first is None or first.WhichOneof("part") != "header":
                raise InvalidMessage("the model does not begin with its header")
            if first.header.total_bytes != schema.total_bytes:
                raise InvalidMessage("the model has another size than the job's schema")
            hasher = schema.hasher()
            offset = 0
            for part in parts:
                if len(part.chunk) > CHUNK_BYTES:
                    raise InvalidMessage(f"a chunk of the model has more than {CHUNK_BYTES} bytes")
                end = offset + len(part.chunk)
                if not part.chunk or end > schema.total_bytes:
                    raise InvalidMessage("the model has more bytes than the job's schema")
                into[offset:end] = part.chunk
                hasher.update(part.chunk)
                offset = end
        if offset != schema.total_bytes:
            raise Unavailable("the model's transfer broke off")
        if hasher.digest() != digest:
            raise InvalidMessage(
                "the coordinator sent another model than the aggregator's manifest names"
            )

    def close(self) -> None:
        """End the open stream, from another thread."""
        with self._lock:
            self._closed = True
            if self._stream is not None:
                self._stream.cancel()
