"""Puts the steps around every handler, and reads its request once they are taken."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from cairn.errors import InvalidMessage
from cairn.runtime.timeouts import CALL_SECONDS
from cairn.transport import framing
from cairn.transport.access import LONG_CALLS
from cairn.transport.call_deadline import await_taken
from cairn.transport.parsing import parsing
from cairn.transport.steps import Call, Step
from cairn.transport.watchdog import Late, Watch


class Interceptor(grpc.ServerInterceptor):
    """Takes the steps in their order at every call, each around those that follow. Long calls have a pool of their own."""

    def __init__(self, steps: Sequence[Step], long_pool: ThreadPoolExecutor) -> None:
        self._steps = steps
        self._long_pool = long_pool
        self._handlers: dict[str, Any] = {}

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        if method not in self._handlers:  # made once: one thread takes in every call there is
            handler = continuation(handler_call_details)
            if handler is None:
                return None  # gRPC answers UNIMPLEMENTED
            self._handlers[method] = self._around(method, handler)
        return self._handlers[method]

    def _around(self, method: str, handler: Any) -> Any:
        """The handler inside the steps. For gRPC every request is a stream, which looks the same on the wire.

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
        inside: Any = answers(method, reading)
        if method in LONG_CALLS:
            # gRPC-Python runs a behaviour with this attribute in the pool it names.
            inside.experimental_thread_pool = self._long_pool
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        # Without a deserialiser gRPC hands over the bytes; with one it answers malformed bytes INTERNAL.
        return make(inside, None, framing.response_writer(method, handler.response_serializer))

    def _single(self, method: str, reading: Any) -> Any:
        def inside(raws: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            with self._taken(Call(method, context)) as watch:
                return reading(raws, context, watch)

        return inside

    def _streaming(self, method: str, reading: Any) -> Any:
        def inside(raws: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._taken(Call(method, context)) as watch:
                for answer in reading(raws, context, watch):
                    await_taken(watch)
                    yield answer
                    watch.relax()

        return inside

    @contextmanager
    def _taken(self, call: Call, first: int = 0) -> Iterator[Watch]:
        """Take the steps from the `first` on.

        Each inside the one before, by itself: an ExitStack that an error passes through is in a circle with it, and
        would keep the call, which gRPC counts until it is gone.
        """
        if first == len(self._steps):
            if call.watch is None:
                raise AssertionError("no step watches over what the call waits for")
            yield call.watch
            return
        with self._steps[first].around(call), self._taken(call, first + 1) as watch:
            yield watch


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
        raise Late from None
    watch.relax()
    if watch.was_late:
        raise Late
    if raw is None:
        raise InvalidMessage("the call ended before its request had come")
    return raw
