"""The guard around every handler: who may call, for how long, and what a refusal looks like.

gRPC-Python checks no role at the handshake and shows no peer to its interceptors, so the guard wraps
each handler: it authorises the caller by the access table, refuses a call without a deadline, counts
each caller's long calls and maps our errors to statuses.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
import structlog

from cairn import errors
from cairn.access import LONG_CALLS, may_call
from cairn.errors import CairnError, CallerNotAllowed
from cairn.identity import NodeName, caller_of
from cairn.messages import reason_word

LONG_CALLS_OF_ONE_CALLER = 4  # a broken one may still be held when its repetition comes
_LONGEST_CALL_SECONDS = 8 * 24 * 3600  # a round lasts a week at most
_SENTENCE_CHARACTERS = 1000  # metadata beyond 8 KiB may be refused

STATUS: dict[type[CairnError], grpc.StatusCode] = {
    errors.InvalidMessage: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UpdateRefused: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CallerNotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Conflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.TooMuch: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}

log = structlog.get_logger()


def caller(context: grpc.ServicerContext) -> NodeName:
    """Who calls, by the certificate of the connection."""
    return caller_of(context.auth_context()["x509_pem_cert"][0])


class Guard(grpc.ServerInterceptor):
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
        STATUS.get(type(error), grpc.StatusCode.INTERNAL), str(error)[:_SENTENCE_CHARACTERS]
    )
    raise AssertionError  # abort raises; this tells the type checker


def _name_of_caller(context: grpc.ServicerContext) -> str:
    try:
        return str(caller(context))
    except CairnError:
        return "unknown"
