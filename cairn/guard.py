"""The guard around every handler: who may call, how much at a time, and what a refusal looks like.

gRPC-Python checks no role at the handshake and shows no peer to its interceptors, so the guard wraps
each handler. At every call it looks at the caller's name, its role's row in the access table, the end of
its certificate, and whether the node admits it still; it refuses a call without a deadline and more calls
than one caller may have; it parses what came, and maps our errors to statuses.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import grpc
import structlog

from cairn import errors, frames
from cairn.access import LONG_CALLS, may_call
from cairn.clock import Clock
from cairn.errors import CairnError, CallerNotAllowed, InvalidMessage
from cairn.identity import Certified, NodeName, certified
from cairn.limits import MAX_ROUND_SECONDS
from cairn.messages import reason_word
from cairn.tensors import CHUNK_BYTES
from cairn.v1 import round_pb2 as pb

LONG_CALLS_OF_ONE_CALLER = 4  # a broken one may still be held when its repetition comes
SHORT_CALLS_OF_ONE_CALLER = 8
MESSAGE_BYTES = CHUNK_BYTES + (1 << 18)  # a chunk and its frame: no model is one message
_LARGE = {"/cairn.v1.ReleaseService/RegisterJob"}  # a job's schema; its listener bounds it
_MAX_CALL_SECONDS = MAX_ROUND_SECONDS + 24 * 3600  # a round's, and what comes after its end
_SENTENCE_BYTES = (
    1000  # three times as long on the wire, where metadata beyond 8 KiB may be refused
)

STATUS: dict[type[CairnError], grpc.StatusCode] = {
    errors.InvalidMessage: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UpdateRefused: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CallerNotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Fenced: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Conflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.TooMuch: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}

Admits = Callable[
    [Certified], None
]  # raises CallerNotAllowed, or Unavailable where that is not known
Refused = Callable[
    [NodeName | None, str, CairnError], None
]  # the caller where known, the method, why

log = structlog.get_logger()


def everybody(_caller: Certified) -> None:
    """Admit every node that has the role."""


def unrecorded(_node: NodeName | None, _method: str, _error: CairnError) -> None:
    """Leave a refusal to the log."""


def caller(context: grpc.ServicerContext) -> NodeName:
    """Who calls, by the certificate of the connection."""
    return certified_caller(context).node


def certified_caller(context: grpc.ServicerContext) -> Certified:
    """What the certificate of the connection says."""
    return certified(_certificate(context))


class Guard(grpc.ServerInterceptor):
    """Asks `admits` about the caller at every call, and tells `refused` of every refusal, once."""

    def __init__(
        self,
        federation: str,
        long_pool: ThreadPoolExecutor,
        *,
        admits: Admits = everybody,
        refused: Refused = unrecorded,
        clock: Clock | None = None,
    ) -> None:
        self._federation = federation
        self._long_pool = long_pool
        self._admits = admits
        self._refused = refused
        self._clock = clock or Clock()
        self._guarded: dict[str, Any] = {}
        self._short_calls = _Quota(SHORT_CALLS_OF_ONE_CALLER, "short")
        self._long_calls = _Quota(LONG_CALLS_OF_ONE_CALLER, "long")

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        if method not in self._guarded:  # made once: one thread takes in every call there is
            handler = continuation(handler_call_details)
            if handler is None:
                return None  # gRPC answers UNIMPLEMENTED
            self._guarded[method] = self._around(method, handler)
        return self._guarded[method]

    def _around(self, method: str, handler: Any) -> Any:
        shape = (
            ("stream" if handler.request_streaming else "unary")
            + "_"
            + ("stream" if handler.response_streaming else "unary")
        )
        reader = frames.request_reader(method, handler.request_deserializer)
        behaviour = _parsing(method, handler, reader, getattr(handler, shape))
        guarded = (self._streaming if handler.response_streaming else self._single)(
            method, behaviour
        )
        if method in LONG_CALLS:
            # gRPC-Python runs a behaviour with this attribute in the pool it names.
            guarded.experimental_thread_pool = self._long_pool
        # Without a deserialiser gRPC hands over the bytes; with one it answers malformed bytes INTERNAL.
        return getattr(grpc, f"{shape}_rpc_method_handler")(
            guarded, None, frames.response_writer(method, handler.response_serializer)
        )

    def _single(self, method: str, behaviour: Any) -> Any:
        def guarded(request: Any, context: grpc.ServicerContext) -> Any:
            with self._mapped(method, context), self._admitted(method, context):
                return behaviour(request, context)

        return guarded

    def _streaming(self, method: str, behaviour: Any) -> Any:
        def guarded(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._mapped(method, context), self._admitted(method, context):
                yield from behaviour(request, context)

        return guarded

    @contextmanager
    def _admitted(self, method: str, context: grpc.ServicerContext) -> Iterator[None]:
        """Authorise, and count calls, so that one caller cannot take the others' threads."""
        node = self._authorised(method, context)
        with (self._long_calls if method in LONG_CALLS else self._short_calls).taken_by(node):
            yield

    def _authorised(self, method: str, context: grpc.ServicerContext) -> NodeName:
        certificate = certified_caller(context)
        node = certificate.node
        if node.federation != self._federation:
            raise CallerNotAllowed(
                f"{node} belongs to another federation than this node, which is in {self._federation}"
            )
        if not may_call(node.role, method):
            raise CallerNotAllowed(f"{node} has the role {node.role}, which may not call {method}")
        # The handshake has checked it once; a connection may outlast a certificate.
        certificate.check_end(self._clock.unix_ms())
        self._admits(certificate)
        # gRPC reports a call without a deadline as one that has billions of years left.
        if context.time_remaining() > _MAX_CALL_SECONDS:
            raise InvalidMessage(
                f"the call has no deadline within {_MAX_CALL_SECONDS} seconds; every call must have one",
                pb.REASON_NO_DEADLINE,
            )
        return node

    @contextmanager
    def _mapped(self, method: str, context: grpc.ServicerContext) -> Iterator[None]:
        try:
            yield
        except CairnError as error:
            self._refuse(method, context, error)
        except grpc.RpcError:
            raise  # the caller broke off while its stream was read
        except Exception:
            if context.is_active():  # else it is context.abort itself, or a cancelled call's end
                log.exception("handler failed", method=method)
                context.abort(grpc.StatusCode.INTERNAL, "the node failed; its own log says why")
            raise

    def _refuse(self, method: str, context: grpc.ServicerContext, error: CairnError) -> NoReturn:
        node = _caller_if_known(context)
        log.warning(
            "refused",
            method=method,
            caller=str(node or "unknown"),
            error=type(error).__name__,
            reason=str(error),
        )
        try:
            self._refused(node, method, error)
        except Exception:  # what cannot be recorded is refused all the same
            log.exception("a refusal could not be recorded", method=method)
        context.set_trailing_metadata(
            (("cairn-error", type(error).__name__), ("cairn-reason", reason_word(error.reason)))
        )
        context.abort(
            STATUS.get(type(error), grpc.StatusCode.INTERNAL),
            str(error).encode()[:_SENTENCE_BYTES].decode(errors="ignore"),
        )
        raise AssertionError  # abort raises; this tells the type checker


class _Quota:
    """How many calls of one kind each caller may have under way."""

    def __init__(self, most: int, kind: str) -> None:
        self._most = most
        self._kind = kind
        self._lock = threading.Lock()
        self._under_way: Counter[NodeName] = Counter()

    @contextmanager
    def taken_by(self, node: NodeName) -> Iterator[None]:
        with self._lock:
            if self._under_way[node] >= self._most:
                raise errors.TooMuch(
                    f"{node} has {self._most} {self._kind} calls under way already"
                )
            self._under_way[node] += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way[node] -= 1


def _parsing(method: str, handler: Any, reader: frames.Reader, behaviour: Any) -> Any:
    """The behaviour, on bytes. Raises InvalidMessage, when it is called or reads on, for no message."""

    def parsed(raw: bytes) -> Any:
        if len(raw) > MESSAGE_BYTES and method not in _LARGE:
            raise errors.TooMuch(f"a message of this method has {MESSAGE_BYTES} bytes at most")
        try:
            return reader(raw)
        except Exception as error:
            raise InvalidMessage("the bytes are not the message that this method takes") from error

    if handler.request_streaming:
        return lambda raws, context: behaviour(map(parsed, raws), context)
    return lambda raw, context: behaviour(parsed(raw), context)


def _certificate(context: grpc.ServicerContext) -> bytes:
    return cast("bytes", context.auth_context()["x509_pem_cert"][0])


def _caller_if_known(context: grpc.ServicerContext) -> NodeName | None:
    try:
        return caller(context)
    except CairnError:
        return None
