"""Refuses a call without a deadline, and ends one whose peer sends no request or takes no answer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cairn.errors import CairnError, InvalidMessage, LimitExceeded
from cairn.protocol.limits import MAX_ROUND_SECONDS
from cairn.runtime.timeouts import IDLE_SECONDS
from cairn.transport.steps import Call
from cairn.transport.watchdog import Watch, Watchdog
from cairn.v1 import round_pb2 as pb

_MAX_CALL_SECONDS = MAX_ROUND_SECONDS + 24 * 3600  # a round's, and what comes after its end


class CallDeadline:
    """Every call has to have one."""

    @contextmanager
    def around(self, call: Call) -> Iterator[None]:
        # gRPC reports a call without a deadline as one that has billions of years left.
        if call.context.time_remaining() > _MAX_CALL_SECONDS:
            raise InvalidMessage(
                f"the call has no deadline within {_MAX_CALL_SECONDS} seconds; every call must have one",
                pb.REASON_NO_DEADLINE,
            )
        yield


class PeerTimeout:
    """Watches over what each call waits for from its peer; `record` is told of one that did not come."""

    def __init__(self, watchdog: Watchdog, record: Callable[[Call, CairnError], None]) -> None:
        self._watchdog = watchdog
        self._record = record

    @contextmanager
    def around(self, call: Call) -> Iterator[None]:
        def late(complaint: str) -> None:
            call.context.cancel()
            self._record(call, LimitExceeded(complaint))

        watch = call.watch = self._watchdog.watch(late)
        try:
            yield
        finally:
            # Else the two keep each other, and gRPC counts a call's stream until the call is gone.
            call.watch = None
            await_taken(watch)
            if not call.context.add_callback(lambda: self._watchdog.forget(watch)):
                self._watchdog.forget(watch)  # the call has ended already


def await_taken(watch: Watch) -> None:
    """From now on the peer has to take an answer."""
    watch.expect(IDLE_SECONDS, f"nobody took the answer within {IDLE_SECONDS} seconds")
