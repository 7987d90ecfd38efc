"""Ends calls whose peer does not do in time what the call waits for; one thread watches over all of them.

It looks once a second, so a call may have a second more than it is given.
"""

import math
import threading
from collections.abc import Callable

import structlog

from cairn.runtime.clock import Clock

_LOOK_EVERY_SECONDS = 1.0

log = structlog.get_logger()

TellLate = Callable[[str], None]  # is told what did not come


class Late(Exception):
    """The watchdog has ended the call, and recorded that."""


class Watch:
    """What one call waits for from its peer: nothing at first."""

    def __init__(self, late: TellLate, clock: Clock) -> None:
        self._late = late
        self._clock = clock
        self._due = math.inf
        self._complaint = ""
        self.was_late = False

    def expect(self, seconds: float, complaint: str) -> None:
        """The peer has so long from now; else the call is ended with this complaint."""
        self._complaint = complaint
        self._due = self._clock.monotonic() + seconds

    def relax(self) -> None:
        """Whatever was expected has come."""
        self._due = math.inf

    def is_over(self, now: float) -> bool:
        return now >= self._due

    def complain(self) -> None:
        self.was_late = True
        self._late(self._complaint)


class Watchdog:
    """Every method may be called from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._watches: set[Watch] = set()
        self._needed = threading.Event()
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def watch(self, late: TellLate) -> Watch:
        """Watch over a call until `forget`; where it is late, `late` is called once, in another thread."""
        watch = Watch(late, self._clock)
        with self._lock:
            self._watches.add(watch)
            self._needed.set()
        return watch

    def forget(self, watch: Watch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def stop(self) -> None:
        """Watch over nothing more."""
        self._stopped.set()
        self._needed.set()

    def _run(self) -> None:
        while not self._stopped.wait(_LOOK_EVERY_SECONDS):
            self._needed.wait()
            for watch in self._overdue():
                try:
                    watch.complain()
                except Exception:  # the others are watched over all the same
                    log.exception("a call that was late could not be ended")

    def _overdue(self) -> list[Watch]:
        now = self._clock.monotonic()
        with self._lock:
            found = [watch for watch in self._watches if watch.is_over(now)]
            self._watches.difference_update(found)
            if not self._watches:
                self._needed.clear()
            return found
