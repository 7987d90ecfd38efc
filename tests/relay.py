"""A gRPC relay between the nodes of a test's federation: it loses requests and answers, method by method.

It stands where the callee would be, under the callee's own certificate, and calls on under the certificate
of whoever called: a test has everybody's keys. So both ends speak through real TLS and notice nothing but
what is lost. Messages go through as bytes.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health_pb2

from cairn.identity.certified import certified
from cairn.v1 import aggregator_pb2, coordinator_pb2

# Where a call breaks off. REQUEST: the callee never sees it. FIRST: the callee has begun to answer, and
# the caller sees nothing of that; of a call with one answer the callee is done. SECOND: the first message has
# gone through. END: every message has, and the caller does not see that it was all.
REQUEST, FIRST, SECOND, END = "request", "first", "second", "end"

SHAPES = {  # whether the request is a stream, and the answer
    f"/{service.full_name}/{method.name}": (method.client_streaming, method.server_streaming)
    for file in (aggregator_pb2, coordinator_pb2, health_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
_THREADS = 48
_HELD_SECONDS = 20.0


def places_of(method: str) -> tuple[str, ...]:
    """Where a call of this method can break off."""
    requests, answers = SHAPES[method]
    if answers:
        return (REQUEST, FIRST, SECOND, END)
    return (REQUEST, SECOND, FIRST) if requests else (REQUEST, FIRST)


class Losses:
    """What is to be lost of each caller's calls, for all relays of a federation.

    `lost` counts what was, by kind and place. A kind is the name of the method; JoinRound has three. `held`
    counts the calls that were kept waiting, and `held_in_vain` those for which nothing was lost meanwhile.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.plan({})

    def plan(
        self,
        losses: Mapping[str, Sequence[str]],
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
        holds: Mapping[str, str] | None = None,
    ) -> None:
        """Lose each caller's first call of a kind at the first of these places, its second at the second.

        A call of a kind in `holds` is kept waiting until all is lost of the kind that it names, and where
        requests are lost until one has come through after that.
        """
        with self._changed:
            self.code = code
            self.lost: Counter[tuple[str, str]] = Counter()
            self.held = self.held_in_vain = 0
            self._answered: set[str] = set()  # of which a call came through after all was lost
            self._losses = dict(losses)
            self._holds = dict(holds or {})
            self._left: dict[tuple[str, str], deque[str]] = {}
            self._joined: set[tuple[str, bytes]] = set()
            self._changed.notify_all()

    def kind(self, caller: str, method: str, request: bytes) -> str:
        name = method.rpartition("/")[2]
        if name != "JoinRound":
            return name
        message = aggregator_pb2.JoinRoundRequest.FromString(request)
        key = caller, message.manifest_digest
        if not message.join:
            return "JoinRound decline"
        with self._changed:
            return "JoinRound renew" if key in self._joined else "JoinRound accept"

    def note_joined(self, caller: str, request: bytes) -> None:
        message = aggregator_pb2.JoinRoundRequest.FromString(request)
        with self._changed:
            self._joined.add((caller, message.manifest_digest))

    def take(self, caller: str, kind: str) -> str | None:
        """The place at which this call is to break off."""
        with self._changed:
            awaited = self._holds.get(kind)
            if awaited is not None:
                self.held += 1
                if not self._changed.wait_for(lambda: self._is_through(awaited), _HELD_SECONDS):
                    self.held_in_vain += 1
            left = self._left.setdefault((caller, kind), deque(self._losses.get(kind, ())))
            return left.popleft() if left else None

    def put_back(self, caller: str, kind: str, place: str | None) -> None:
        """The call has failed by itself: a later one is to meet the loss."""
        with self._changed:
            if place is not None:
                self._left[caller, kind].appendleft(place)

    def note(self, kind: str, place: str) -> None:
        with self._changed:
            self.lost[kind, place] += 1
            self._changed.notify_all()

    def note_answered(self, kind: str) -> None:
        """An answer is on its way to its caller."""
        with self._changed:
            if all(self.lost[kind, place] for place in self._losses.get(kind, ())):
                self._answered.add(kind)
            self._changed.notify_all()

    def _is_through(self, kind: str) -> bool:
        places = self._losses.get(kind, ())
        is_lost = all(self.lost[kind, place] for place in places)
        return is_lost and (REQUEST not in places or kind in self._answered)


class Relay(grpc.GenericRpcHandler):
    """Takes calls at `address` for the node at `target`, under the certificate of that node, `callee`."""

    def __init__(self, files: Path, callee: str, target: str, losses: Losses) -> None:
        self._files = files
        self._target = target
        self._losses = losses
        self._lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}
        key, certificate, authority = self._credentials(callee)
        self._grpc = grpc.server(ThreadPoolExecutor(_THREADS), handlers=[self])
        credentials = grpc.ssl_server_credentials([(key, certificate)], authority, True)
        self.address = f"localhost:{self._grpc.add_secure_port('localhost:0', credentials)}"
        self._grpc.start()

    def close(self) -> None:
        self._grpc.stop(0.0).wait()
        for channel in self._channels.values():
            channel.close()

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        requests, answers = SHAPES[method]
        make: Any = getattr(
            grpc,
            f"{'stream' if requests else 'unary'}_{'stream' if answers else 'unary'}_rpc_method_handler",
        )
        pass_on: Any = self._stream if answers else self._push if requests else self._single
        return make(partial(pass_on, method))

    def _single(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        caller = _caller(context)
        kind = self._losses.kind(caller, method, request)
        place = self._begun(caller, kind, context)
        call = self._onward(caller, method).future(request, timeout=context.time_remaining())
        context.add_callback(call.cancel)
        answer = self._answer(call, caller, kind, place, context)
        if kind.startswith("JoinRound"):
            self._losses.note_joined(caller, request)
        self._losses.note_answered(kind)
        return answer

    def _push(self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        caller, kind = _caller(context), method.rpartition("/")[2]
        place = self._begun(caller, kind, context)
        over = threading.Event()
        onward: Iterable[bytes] = _first_of(requests, over) if place == SECOND else requests
        call = self._onward(caller, method).future(onward, timeout=context.time_remaining())
        context.add_callback(call.cancel)
        metadata = call.initial_metadata()  # the callee has read the first message, or refused it
        if place == SECOND:
            call.cancel()
            over.set()
            self._lose(kind, place, context)
        context.send_initial_metadata(metadata)
        return self._answer(call, caller, kind, place, context)

    def _stream(
        self, method: str, request: bytes, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        caller, kind = _caller(context), method.rpartition("/")[2]
        place = self._begun(caller, kind, context)
        call = self._onward(caller, method)(request, timeout=context.time_remaining())
        context.add_callback(call.cancel)
        number = 0
        try:
            for message in call:
                if (number, place) in {(0, FIRST), (1, SECOND)}:
                    call.cancel()
                    self._lose(kind, str(place), context)
                yield message
                number += 1
        except grpc.RpcError as error:
            if number and place == END:  # a callee that stops may cut off its own last word
                self._lose(kind, END, context)
            self._losses.put_back(caller, kind, place)
            _refuse(error, context)
        if place is not None:
            self._lose(kind, END, context)  # also where there were too few messages

    def _begun(self, caller: str, kind: str, context: grpc.ServicerContext) -> str | None:
        place = self._losses.take(caller, kind)
        if place == REQUEST:
            self._lose(kind, place, context)
        return place

    def _answer(
        self, call: Any, caller: str, kind: str, place: str | None, context: grpc.ServicerContext
    ) -> bytes:
        try:
            answer: bytes = call.result()
        except grpc.RpcError as error:
            if place is None or not _is_refusal(error):
                self._losses.put_back(caller, kind, place)
                _refuse(error, context)
        if place is not None:
            self._lose(kind, place, context)
        return answer

    def _lose(self, kind: str, place: str, context: grpc.ServicerContext) -> NoReturn:
        self._losses.note(kind, place)
        context.abort(self._losses.code, f"the relay lost this call: {kind}, {place}")
        raise AssertionError  # abort raises

    def _onward(self, caller: str, method: str) -> Any:
        with self._lock:
            if caller not in self._channels:
                key, certificate, authority = self._credentials(caller)
                self._channels[caller] = grpc.secure_channel(
                    self._target,
                    grpc.ssl_channel_credentials(authority, key, certificate),
                    options=[
                        ("grpc.enable_retries", 0),
                        ("grpc.initial_reconnect_backoff_ms", 100),
                        ("grpc.max_reconnect_backoff_ms", 200),
                    ],
                )
            channel = self._channels[caller]
        requests, answers = SHAPES[method]
        shape = f"{'stream' if requests else 'unary'}_{'stream' if answers else 'unary'}"
        make: Callable[[str], Any] = getattr(channel, shape)
        return make(method)

    def _credentials(self, node: str) -> tuple[bytes, bytes, bytes]:
        home = self._files / node
        key, certificate, authority = (
            (home / name).read_bytes() for name in ("node.key", "node.crt", "authority.crt")
        )
        return key, certificate, authority


def _first_of(requests: Iterator[bytes], over: threading.Event) -> Iterator[bytes]:
    yield next(requests)
    over.wait()


def _caller(context: grpc.ServicerContext) -> str:
    certificate: Any = context.auth_context()["x509_pem_cert"][0]
    return certified(certificate).node.name


def _is_refusal(error: Any) -> bool:
    """Whether the callee has answered this, and not the connection to it."""
    return "cairn-error" in dict(error.trailing_metadata() or ())


def _refuse(error: Any, context: grpc.ServicerContext) -> NoReturn:
    """Pass on how the onward call has failed."""
    context.set_trailing_metadata(error.trailing_metadata() or ())
    context.abort(error.code(), error.details() or "")
    raise AssertionError  # abort raises
