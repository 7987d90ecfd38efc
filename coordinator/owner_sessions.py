"""Who attends: the owners whose streams are open, and what is to be sent on each."""

import queue
import threading
from collections.abc import Callable, Collection, Sequence

from cairn.runtime.timeouts import SHORT_WAIT_SECONDS
from cairn.v1 import coordinator_pb2

Waiting = Callable[[list[str]], object]  # is told who attends


class OwnerStream:
    """One open stream. `None` in its queue is the end of the stream."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[coordinator_pb2.AttendResponse | None] = queue.SimpleQueue()

    def send(self, event: coordinator_pb2.AttendResponse | None) -> None:
        self._events.put(event)

    def next(self) -> coordinator_pb2.AttendResponse | None:
        """Wait for the next event. The stream's end puts None, so this never waits for ever."""
        return self._events.get()


class OwnerSessions:
    """The streams of all owners. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._streams: dict[str, OwnerStream] = {}
        self._changed = threading.Condition()
        self._invitation: tuple[frozenset[str], coordinator_pb2.AttendResponse] | None = None
        self._stopped = False

    def enter(self, owner: str) -> OwnerStream:
        """Open the owner's stream; one that it had before is ended, an open invitation is sent again."""
        stream = OwnerStream()
        with self._changed:
            before = self._streams.get(owner)
            if before is not None:
                before.send(None)
            if self._stopped:
                stream.send(None)
            else:
                self._streams[owner] = stream
            if self._invitation is not None and owner in self._invitation[0]:
                stream.send(self._invitation[1])
            self._changed.notify_all()
        return stream

    def leave(self, owner: str, stream: OwnerStream) -> None:
        """The owner's stream has ended."""
        stream.send(None)
        with self._changed:
            if self._streams.get(owner) is stream:
                del self._streams[owner]
            self._changed.notify_all()

    def wait_for_group(
        self,
        groups: Sequence[Collection[str]],
        expected: Collection[str],
        floor: int,
        seconds: float,
        waiting: Waiting = lambda _: None,
    ) -> list[str]:
        """Wait for one of the groups to attend; returns who does of all of them, sorted.

        Those `expected` are waited for a moment, and as long as fewer than `floor` of each group attend
        everybody is, for at most `seconds`; then `waiting` is told who attends.
        """
        self._wait_for([expected], len(expected), min(seconds, SHORT_WAIT_SECONDS))
        return self._wait_and_tell(groups, floor, 0.0, seconds, waiting)

    def wait_for_all(
        self, owners: Collection[str], seconds: float, waiting: Waiting = lambda _: None
    ) -> list[str]:
        """Wait for all of `owners`, for at most `seconds`; returns who attends, sorted.

        Where it takes longer than a moment, `waiting` is told who attends so far.
        """
        moment = min(seconds, SHORT_WAIT_SECONDS)
        return self._wait_and_tell([owners], len(owners), moment, seconds - moment, waiting)

    def _wait_and_tell(
        self,
        groups: Sequence[Collection[str]],
        count: int,
        silent_seconds: float,
        told_seconds: float,
        waiting: Waiting,
    ) -> list[str]:
        if not self._wait_for(groups, count, silent_seconds) and told_seconds:
            waiting(self._connected(groups))
            self._wait_for(groups, count, told_seconds)
        return self._connected(groups)

    def _wait_for(self, groups: Sequence[Collection[str]], count: int, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._present(groups, count), seconds)

    def _connected(self, groups: Sequence[Collection[str]]) -> list[str]:
        with self._changed:
            return sorted(self._streams.keys() & {owner for group in groups for owner in group})

    def _present(self, groups: Sequence[Collection[str]], count: int) -> bool:
        connected = self._streams.keys()
        return self._stopped or any(len(connected & set(group)) >= count for group in groups)

    def invite(self, cohort: Collection[str], invitation: coordinator_pb2.AttendResponse) -> None:
        """Send the invitation to the cohort, now and to those of it who come back."""
        with self._changed:
            self._invitation = (frozenset(cohort), invitation)
            for owner in cohort:
                if owner in self._streams:
                    self._streams[owner].send(invitation)

    def tell(self, owners: Collection[str], event: coordinator_pb2.AttendResponse) -> None:
        """The round has ended: withdraw the invitation and tell the outcome."""
        with self._changed:
            self._invitation = None
            for owner in owners:
                if owner in self._streams:
                    self._streams[owner].send(event)

    def disconnect(self, owners: Collection[str]) -> set[str]:
        """End the streams of owners that were not heard of; returns who had one. Who is there comes back at once.

        A connection may be gone of which nobody told us yet; a round for those at its other end is in vain.
        """
        with self._changed:
            connected = self._streams.keys() & set(owners)
            for owner in connected:
                self._streams.pop(owner).send(None)
        return connected

    def wake(self) -> None:
        """End all waiting for owners: the job is being stopped."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def dismiss(self, last: coordinator_pb2.AttendResponse | None, seconds: float) -> None:
        """Send everybody the last event, end all streams and wait for that, at most so long."""
        with self._changed:
            self._stopped = True
            self._invitation = None
            for stream in self._streams.values():
                if last is not None:
                    stream.send(last)
                stream.send(None)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._streams, timeout=seconds)
