"""The guard around every handler: who may call, how much at a time, and what a refusal looks like.

gRPC-Python checks no role at the handshake and shows no peer to its interceptors, so the guard wraps
each handler. At every call it looks at the caller's name, its role's row in the access table, the end of
its certificate, and whether the node admits it still; it refuses a call without a deadline and more calls
than one caller may have. All that is decided before the request is waited for. A request that does not come,
or an answer that is not taken, ends the call. It parses what came, and maps our errors to statuses.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import grpc
import structlog

from cairn import errors, frames
from cairn.access import LONG_CALLS, is_for_everybody, may_call
from cairn.certified import Certified, certified
from cairn.clock import Clock
from cairn.connections import Connections
from cairn.errors import CairnError, CallerNotAllowed, InvalidMessage
from cairn.identity import NodeName, Role
from cairn.limits import MAX_ROUND_SECONDS
from cairn.messages import reason_word
from cairn.parsing import parsing
from cairn.pools import LONG_CALLS_OF_ONE_CALLER, SHORT_CALLS_OF_ONE_CALLER, Pools
from cairn.quota import Place, Quota
from cairn.status import STATUS
from cairn.timeouts import CALL_SECONDS, IDLE_SECONDS
from cairn.v1 import round_pb2 as pb
from cairn.watchdog import Watch, Watchdog

_MAX_CALL_SECONDS = MAX_ROUND_SECONDS + 24 * 3600  # a round's, and what comes after its end
_SENTENCE_BYTES = (
    1000  # three times as long on the wire, where metadata beyond 8 KiB may be refused
)

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
    """Asks `admits` about the caller at every call, and tells `refused` of every refusal, once.

    A call that it ends because its caller does nothing counts as refused.
    """

    def __init__(
        self,
        federation: str,
        pools: Pools,
        connections: Connections,
        clock: Clock,
        *,
        serves: Role | None,
        admits: Admits,
        refused: Refused,
    ) -> None:
        self._federation = federation
        self._long_pool = pools.long
        self._admits = admits
        self._refused = refused
        self._clock = clock
        self._serves = serves
        self._connections = connections
        self._watchdog = Watchdog(self._clock)
        self._guarded: dict[str, Any] = {}
        self._short_calls = Quota("short", SHORT_CALLS_OF_ONE_CALLER, pools.short_calls)
        self._long_calls = Quota("long", LONG_CALLS_OF_ONE_CALLER, pools.long_calls)

    def stop(self) -> None:
        """Watch over no call any more."""
        self._watchdog.stop()

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        if method not in self._guarded:  # made once: one thread takes in every call there is
            handler = continuation(handler_call_details)
            if handler is None:
                return None  # gRPC answers UNIMPLEMENTED
            self._guarded[method] = self._around(method, handler)
        return self._guarded[method]

    def _around(self, method: str, handler: Any) -> Any:
        """The handler, guarded. For gRPC every request is a stream, which looks the same on the wire.

        For a request that is none, gRPC would take a thread and wait for its message before anybody could
        ask who calls.
        """
        single = not handler.request_streaming
        shape = f"{'unary' if single else 'stream'}_{'stream' if handler.response_streaming else 'unary'}"
        behaviour = getattr(handler, shape)
        parsed = parsing(method, handler.request_deserializer)

        def reading(raws: Iterator[bytes], context: grpc.ServicerContext, watch: Watch) -> Any:
            request = parsed(_first(raws, watch)) if single else map(parsed, _all(raws, watch))
            return behaviour(request, context)

        answers = self._streaming if handler.response_streaming else self._single
        guarded: Any = answers(method, reading)
        if method in LONG_CALLS:
            # gRPC-Python runs a behaviour with this attribute in the pool it names.
            guarded.experimental_thread_pool = self._long_pool
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        # Without a deserialiser gRPC hands over the bytes; with one it answers malformed bytes INTERNAL.
        return make(guarded, None, frames.response_writer(method, handler.response_serializer))

    def _single(self, method: str, reading: Any) -> Any:
        def guarded(raws: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            with self._mapped(method, context), self._admitted(method, context) as watch:
                return reading(raws, context, watch)

        return guarded

    def _streaming(self, method: str, reading: Any) -> Any:
        def guarded(raws: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._mapped(method, context), self._admitted(method, context) as watch:
                for answer in reading(raws, context, watch):
                    _await_taken(watch)
                    yield answer
                    watch.relax()

        return guarded

    @contextmanager
    def _admitted(self, method: str, context: grpc.ServicerContext) -> Iterator[Watch]:
        """Authorise, and count calls, so that one caller cannot take the others' threads and memory."""
        node = self._authorised(method, context)
        peer = context.peer()
        place = self._placed(method, node, peer)

        def late(complaint: str) -> None:
            context.cancel()
            self._record(method, node, errors.TooMuch(complaint))

        watch = self._watchdog.watch(late)

        def ended() -> None:
            self._watchdog.forget(watch)
            self._connections.leave(node, peer)
            place.leave()

        try:
            yield watch
        finally:
            _await_taken(watch)
            if not context.add_callback(ended):  # the call has ended already
                ended()
            place.leave()

    def _placed(self, method: str, node: NodeName, peer: str) -> Place:
        """A place for the call among those of its caller."""
        self._connections.enter(node, peer)
        try:
            return (self._long_calls if method in LONG_CALLS else self._short_calls).take(node)
        except errors.TooMuch:
            self._connections.leave(node, peer)
            raise

    def _authorised(self, method: str, context: grpc.ServicerContext) -> NodeName:
        certificate = certified_caller(context)
        node = certificate.node
        if node.federation != self._federation:
            raise CallerNotAllowed(
                f"{node} belongs to another federation than this node, which is in {self._federation}"
            )
        if not may_call(node.role, method):
            raise CallerNotAllowed(f"{node} has the role {node.role}, which may not call {method}")
        if self._serves not in {None, node.role} and not is_for_everybody(method):
            raise CallerNotAllowed(
                f"this port is for nodes of the role {self._serves}, not for {node}"
            )
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
        except _Late:
            context.abort(grpc.StatusCode.CANCELLED, "the request did not come in time")
        except grpc.RpcError:
            raise  # the caller broke off while its stream was read
        except Exception:
            if context.is_active():  # else it is context.abort itself, or a cancelled call's end
                log.exception("handler failed", method=method)
                context.abort(grpc.StatusCode.INTERNAL, "the node failed; its own log says why")
            raise

    def _refuse(self, method: str, context: grpc.ServicerContext, error: CairnError) -> NoReturn:
        self._record(method, _caller_if_known(context), error)
        context.set_trailing_metadata(
            (("cairn-error", type(error).__name__), ("cairn-reason", reason_word(error.reason)))
        )
        context.abort(
            STATUS.get(type(error), grpc.StatusCode.INTERNAL),
            str(error).encode()[:_SENTENCE_BYTES].decode(errors="ignore"),
        )
        raise AssertionError  # abort raises; this tells the type checker

    def _record(self, method: str, node: NodeName | None, error: CairnError) -> None:
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


class _Late(Exception):
    """The watchdog has ended the call, and recorded that."""


def _all(raws: Iterator[bytes], watch: Watch) -> Iterator[bytes]:
    yield _first(raws, watch)
    yield from raws


def _first(raws: Iterator[bytes], watch: Watch) -> bytes:
    """The first message of a request, which must come soon, and is the only one where it is no stream."""
    watch.expect(CALL_SECONDS, f"the request did not come within {CALL_SECONDS} seconds")
    try:
        raw = next(raws, None)
    except grpc.RpcError:
        if not watch.was_late:
            raise
        raise _Late from None
    watch.relax()
    if watch.was_late:
        raise _Late
    if raw is None:
        raise InvalidMessage("the call ended before its request had come")
    return raw


def _await_taken(watch: Watch) -> None:
    watch.expect(IDLE_SECONDS, f"nobody took the answer within {IDLE_SECONDS} seconds")


def _certificate(context: grpc.ServicerContext) -> bytes:
    return cast("bytes", context.auth_context()["x509_pem_cert"][0])


def _caller_if_known(context: grpc.ServicerContext) -> NodeName | None:
    try:
        return caller(context)
    except CairnError:
        return None
