"""A channel that dials again when this node's certificate, or the one it trusts, was renewed.

gRPC-Python fixes a channel's credentials when it is made. Here every call asks first whether they are
still the present ones: if not, it goes over a new connection. Calls that are under way end on the old one,
which is closed after the last of them.
"""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import grpc

from cairn.errors import WrongState
from cairn.identity.credentials import Identity
from cairn.identity.reload import reloading_identity, reloading_pin
from cairn.identity.trust import PeerTrust
from cairn.transport import framing
from cairn.transport.keepalive import CALL_MS, IDLE_MS, KEEPALIVE
from cairn.transport.parsing import JOB_MESSAGE_BYTES
from cairn.v1 import round_pb2 as pb


class _Line:
    """One channel, the credentials it was dialled with, and how many calls are on it."""

    def __init__(self, channel: grpc.Channel, credentials: Hashable) -> None:
        self.channel = channel
        self.credentials = credentials
        self.calls = 0


class ReloadingChannel(grpc.Channel):
    """Stubs made on it once go on working. Every method may be called from any thread."""

    def __init__(
        self, present: Callable[[], Hashable], connect: Callable[[Any], grpc.Channel]
    ) -> None:
        """Dial by `connect(present())` at the first call, and whenever `present()` answers something else."""
        self._present = present
        self._connect = connect
        self._lock = threading.Lock()
        self._closed = False
        self._line: _Line | None = None
        self._left: set[_Line] = set()  # dialled anew, and calls are still on them

    def unary_unary(self, *method: Any, **coding: Any) -> Any:
        return _Method(self, "unary_unary", *method, **coding)

    def unary_stream(self, *method: Any, **coding: Any) -> Any:
        return _Method(self, "unary_stream", *method, **coding)

    def stream_unary(self, *method: Any, **coding: Any) -> Any:
        return _Method(self, "stream_unary", *method, **coding)

    def stream_stream(self, *method: Any, **coding: Any) -> Any:
        return _Method(self, "stream_stream", *method, **coding)

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:  # noqa: FBT001, FBT002 - grpc.Channel's own
        """Follow the state of the present connection."""
        with self.line() as line:
            line.channel.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        with self.line() as line:
            line.channel.unsubscribe(callback)

    def close(self) -> None:
        """End all calls, on the old connections too."""
        with self._lock:
            self._closed = True
            lines = [*([self._line] if self._line is not None else []), *self._left]
            self._left.clear()
        for line in lines:
            line.channel.close()

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    @contextmanager
    def line(self) -> Iterator[_Line]:
        """The present line, for a call that is over when the block is."""
        line = self.take()
        try:
            yield line
        finally:
            self.release(line)

    def take(self) -> _Line:
        """The present line, dialled anew where the credentials have changed; to be released."""
        with self._lock:
            credentials = self._present()
            left, line = None, self._line
            if line is None or (credentials != line.credentials and not self._closed):
                left, line = line, _Line(self._connect(credentials), credentials)
                self._line = line
                if left is not None and left.calls:
                    self._left.add(left)
            line.calls += 1
        if left is not None and not left.calls:
            left.channel.close()
        return line

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around the beginning of a call: another thread may have closed the channel. Raises WrongState where it has."""
        try:
            yield
        except ValueError:  # gRPC's word for that
            if not self._closed:
                raise
            raise WrongState("this node has hung up", pb.REASON_STOPPING) from None

    def release(self, line: _Line) -> None:
        with self._lock:
            line.calls -= 1
            ended = not line.calls and line in self._left
            if ended:
                self._left.discard(line)
        if ended:
            # Not here: gRPC may be telling us so in the very thread that closing waits for.
            threading.Thread(target=line.channel.close, name="hang-up", daemon=True).start()


class _Method:
    """One method of a stub, called over whichever line is the present one."""

    def __init__(
        self,
        channel: ReloadingChannel,
        shape: str,
        path: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool = False,  # noqa: FBT001, FBT002 - what the generated stubs pass
    ) -> None:
        self._channel = channel
        self._shape = shape
        self._coding = (
            path,
            framing.request_writer(path, request_serializer),
            framing.response_reader(path, response_deserializer),
        )

    def __call__(self, *request: Any, **options: Any) -> Any:
        if self._shape.endswith("_stream"):
            return self._begun("__call__", request, options)
        with self._channel.calling(), self._channel.line() as line:
            return self._on(line)(*request, **options)

    def with_call(self, *request: Any, **options: Any) -> Any:
        with self._channel.calling(), self._channel.line() as line:
            return self._on(line).with_call(*request, **options)

    def future(self, *request: Any, **options: Any) -> Any:
        return self._begun("future", request, options)

    def _on(self, line: _Line) -> Any:
        return getattr(line.channel, self._shape)(*self._coding)

    def _begun(self, way: str, request: Any, options: Any) -> Any:
        """Begin a call that goes on after this returns: it holds its line to its end."""
        line = self._channel.take()
        try:
            with self._channel.calling():
                call = getattr(self._on(line), way)(*request, **options)
        except BaseException:
            self._channel.release(line)
            raise
        if not call.add_callback(lambda: self._channel.release(line)):
            self._channel.release(line)  # it has ended already
        return call


_DIALLING = [
    *KEEPALIVE,
    ("grpc.keepalive_time_ms", IDLE_MS - CALL_MS),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", CALL_MS),  # how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),  # a call is repeated by the code that knows whether it may be
    ("grpc.max_receive_message_length", JOB_MESSAGE_BYTES),
]


def dial(
    address: str,
    identity: Identity,
    trust: PeerTrust | None = None,
    trusted: Callable[[], bytes] | None = None,
) -> grpc.Channel:
    """Open a channel to a node whose certificate the trust pins, or else was issued by our own authority.

    `trusted` says, in the place of a pin, which certificates are accepted at present; what it raises is
    raised by the call. When the files of the identity or of the pin change, or what is trusted, the next
    call dials again with what they hold.
    """
    own = reloading_identity(identity)
    pin = reloading_pin(trust) if trust is not None and trust.is_pinned else None

    def present() -> tuple[Identity, bytes]:
        current = own.current()
        if trusted is not None:
            return current, trusted()
        return current, current.authority if pin is None else pin.current().certificates

    def connect(credentials: tuple[Identity, bytes]) -> grpc.Channel:
        current, trusted = credentials
        secrets = grpc.ssl_channel_credentials(trusted, current.key, current.certificate)
        return grpc.secure_channel(address, secrets, options=_DIALLING)

    return ReloadingChannel(present, connect)
