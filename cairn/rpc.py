"""The one transport kit: mTLS, the guard around every handler, and errors across the wire.

gRPC-Python checks no role at the handshake and shows no peer to its interceptors, so the guard wraps
each handler: it authorises the caller by the access table, refuses a call without a deadline and maps
our errors to statuses. The dialling side maps them back, so both ends speak of the same errors.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cairn import errors
from cairn.access import LONG_CALLS, may_call
from cairn.errors import CairnError, CallerNotAllowed, Unavailable
from cairn.identity import Identity, NodeName, caller_of
from cairn.messages import reason_of_word, reason_word
from cairn.tensors import CHUNK_BYTES

LONG_CALLS_OF_ONE_CALLER = 4  # a broken one may still be held when its repetition comes
_SENTENCE_CHARACTERS = 1000  # metadata beyond 8 KiB may be refused
CALL_SECONDS = 10  # the deadline of every short call
_LONGEST_CALL_SECONDS = 8 * 24 * 3600  # a round lasts a week at most
_SHORT_CALL_THREADS = 8
_MESSAGE_BYTES = CHUNK_BYTES + (
    1 << 18
)  # a chunk and its frame; a model never travels as one message
_SCHEMA_BYTES = 64 << 20  # only a job's schema is larger

_STATUS: dict[type[CairnError], grpc.StatusCode] = {
    errors.InvalidMessage: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UpdateRefused: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CallerNotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Conflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.TooMuch: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}
_BY_NAME = {kind.__name__: kind for kind in _STATUS}

_KEEPALIVE = [
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without it a frozen peer is noticed after a minute whatever the keepalive says.
    ("grpc.http2.ping_timeout_ms", 10_000),
]
_LISTENING = [
    *_KEEPALIVE,
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    (
        "grpc.so_reuseport",
        0,
    ),  # else a second process may bind the same port and take half the calls
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_concurrent_streams", 64),
]
_DIALLING = [
    *_KEEPALIVE,
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),  # a call is repeated by the code that knows whether it may be
    ("grpc.max_receive_message_length", _SCHEMA_BYTES),
]

log = structlog.get_logger()


class Listener:
    """A gRPC server on one address with the guard, the health service and two pools."""

    def __init__(
        self, identity: Identity, *, long_callers: int, message_bytes: int = _MESSAGE_BYTES
    ) -> None:
        """Prepare to listen.

        `long_callers` is how many nodes may have streams under way; `message_bytes` the largest single
        message to accept.
        """
        self._long_pool = ThreadPoolExecutor(
            LONG_CALLS_OF_ONE_CALLER * long_callers + 4, thread_name_prefix="stream"
        )
        self._grpc = grpc.server(
            ThreadPoolExecutor(_SHORT_CALL_THREADS, thread_name_prefix="call"),
            interceptors=[_Guard(identity.node.federation, self._long_pool)],
            options=[*_LISTENING, ("grpc.max_receive_message_length", message_bytes)],
        )
        self._credentials = grpc.ssl_server_credentials(
            [(identity.key, identity.certificate)], identity.authority, require_client_auth=True
        )
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)

    def add(self, register: Callable[[Any, grpc.Server], None], service: object) -> None:
        """Add a service by its generated `add_…Servicer_to_server` function."""
        register(service, self._grpc)

    def start(self, address: str) -> int:
        """Bind, serve and return the port. Raises UsageError where the address cannot be bound."""
        try:
            port = self._grpc.add_secure_port(address, self._credentials)
        except RuntimeError:
            raise errors.UsageError(
                f"cannot listen on {address}: another process has the port, or the address is not"
                " this machine's. Stop the other process or change the address in this node's file"
            ) from None
        self._grpc.start()
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        return port

    def stop(self, grace_seconds: float) -> None:
        """Refuse new calls, give those under way `grace_seconds`, and end them."""
        self._health.enter_graceful_shutdown()
        self._grpc.stop(grace_seconds).wait(grace_seconds + 1)
        self._long_pool.shutdown(wait=False, cancel_futures=True)


def dial(address: str, identity: Identity, trusted: bytes) -> grpc.Channel:
    """Open a channel to a node whose certificate is, or was issued by, `trusted` (PEM)."""
    credentials = grpc.ssl_channel_credentials(trusted, identity.key, identity.certificate)
    return grpc.secure_channel(address, credentials, options=_DIALLING)


def is_serving(channel: grpc.Channel, timeout_seconds: float) -> bool:
    """Ask the peer's health service. Raises Unavailable where it cannot be reached."""
    with translated():
        answer = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]  # the stubs of the stub lack its methods
            health_pb2.HealthCheckRequest(), timeout=timeout_seconds
        )
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def caller(context: grpc.ServicerContext) -> NodeName:
    """Who calls, by the certificate of the connection."""
    return caller_of(context.auth_context()["x509_pem_cert"][0])


@contextmanager
def translated() -> Iterator[None]:
    """Turn the gRPC errors of the calls made inside into ours."""
    try:
        yield
    except grpc.RpcError as error:
        raise _from_status(error) from None


def _from_status(error: Any) -> CairnError:
    metadata = dict(error.trailing_metadata() or ())
    kind = _BY_NAME.get(str(metadata.get("cairn-error", "")))
    text = error.details() or error.code().name
    if kind is errors.UpdateRefused:
        return errors.UpdateRefused(text, reason_of_word(str(metadata.get("cairn-reason", ""))))
    if kind is not None:
        return kind(text)
    if error.code() in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
    }:
        return Unavailable(_connection_trouble(text))
    return CairnError(f"{error.code().name}: {text}")


def _connection_trouble(text: str) -> str:
    """Say what a failed connection most likely means: gRPC reports all of it as UNAVAILABLE."""
    if "CERTIFICATE_VERIFY_FAILED" in text or "Hostname Verification" in text:
        return (
            "the peer's certificate is not the one this node trusts for that address (another"
            f" federation, a renewed certificate, or a host name that it does not hold): {text}"
        )
    if "Connection refused" in text:
        return "nothing listens there (connection refused)"
    if "andshake" in text or "Socket closed" in text:
        return f"the peer ended the connection; it may not accept this node's certificate: {text}"
    return text


class _Guard(grpc.ServerInterceptor):
    def __init__(self, federation: str, long_pool: ThreadPoolExecutor) -> None:
        self._federation = federation
        self._long_pool = long_pool
        self._lock = threading.Lock()
        self._long_calls: Counter[NodeName] = Counter()

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        handler = continuation(handler_call_details)
        if handler is None:
            return None  # gRPC answers UNIMPLEMENTED
        shape = (
            ("stream" if handler.request_streaming else "unary")
            + "_"
            + ("stream" if handler.response_streaming else "unary")
        )
        behaviour = getattr(handler, shape)
        guarded = (self._streaming if handler.response_streaming else self._single)(
            method, behaviour
        )
        if method in LONG_CALLS:
            # gRPC-Python runs a behaviour with this attribute in the pool it names.
            guarded.experimental_thread_pool = self._long_pool
        return getattr(grpc, f"{shape}_rpc_method_handler")(
            guarded, handler.request_deserializer, handler.response_serializer
        )

    def _single(self, method: str, behaviour: Any) -> Any:
        def guarded(request: Any, context: grpc.ServicerContext) -> Any:
            with _mapped(method, context), self._admitted(method, context):
                return behaviour(request, context)

        return guarded

    def _streaming(self, method: str, behaviour: Any) -> Any:
        def guarded(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with _mapped(method, context), self._admitted(method, context):
                yield from behaviour(request, context)

        return guarded

    @contextmanager
    def _admitted(self, method: str, context: grpc.ServicerContext) -> Iterator[None]:
        """Authorise, and count long calls, so that one caller cannot take the others' threads."""
        node = self._authorised(method, context)
        if method not in LONG_CALLS:
            yield
            return
        with self._lock:
            if self._long_calls[node] >= LONG_CALLS_OF_ONE_CALLER:
                raise errors.TooMuch(
                    f"{node} has {LONG_CALLS_OF_ONE_CALLER} long calls under way already"
                )
            self._long_calls[node] += 1
        try:
            yield
        finally:
            with self._lock:
                self._long_calls[node] -= 1

    def _authorised(self, method: str, context: grpc.ServicerContext) -> NodeName:
        node = caller(context)
        if node.federation != self._federation:
            raise CallerNotAllowed(
                f"{node} belongs to another federation than this node, which is in {self._federation}"
            )
        if not may_call(node.role, method):
            raise CallerNotAllowed(f"{node} has the role {node.role}, which may not call {method}")
        # gRPC reports a call without a deadline as one that has billions of years left.
        if context.time_remaining() > _LONGEST_CALL_SECONDS:
            raise errors.InvalidMessage(
                f"the call has no deadline within {_LONGEST_CALL_SECONDS} seconds; every call must have one"
            )
        return node


@contextmanager
def _mapped(method: str, context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except CairnError as error:
        _refuse(method, context, error)
    except grpc.RpcError:
        raise  # the caller broke off while its stream was read
    except Exception:
        if context.is_active():  # else it is context.abort itself, or the end of a cancelled call
            log.exception("handler failed", method=method)
            context.abort(grpc.StatusCode.INTERNAL, "the node failed; its own log says why")
        raise


def _refuse(method: str, context: grpc.ServicerContext, error: CairnError) -> NoReturn:
    log.warning(
        "refused",
        method=method,
        caller=_name_of_caller(context),
        error=type(error).__name__,
        reason=str(error),
    )
    context.set_trailing_metadata(
        (("cairn-error", type(error).__name__), ("cairn-reason", reason_word(error.reason)))
    )
    context.abort(
        _STATUS.get(type(error), grpc.StatusCode.INTERNAL), str(error)[:_SENTENCE_CHARACTERS]
    )
    raise AssertionError  # abort raises; this tells the type checker


def _name_of_caller(context: grpc.ServicerContext) -> str:
    try:
        return str(caller(context))
    except CairnError:
        return "unknown"
