"""Keeps this owner's place in a round while it works: renews the lease until told to stop, or the deadline."""

import threading
import time
from collections.abc import Callable
from typing import Self

from cairn.errors import CairnError, LimitExceeded, Unavailable
from owner_node import events
from owner_node.events import Observer

_RENEWALS_A_LEASE = 3
_LEAST_PAUSE_SECONDS = 0.5  # also for a coordinator that would have us flood the aggregator


class Lease:
    """Renews in a thread of its own. `lost` is called when the round has ended without us.

    It is also called at the round's deadline, a moment of the monotonic clock: then the round is over,
    whether the aggregator can still be asked or not.
    """

    def __init__(
        self,
        renew: Callable[[], object],
        seconds: float,
        deadline: float,
        lost: Callable[[], None],
        tell: Observer,
    ) -> None:
        self._renew = renew
        self._seconds = seconds
        self._pause = seconds / _RENEWALS_A_LEASE
        self._heard = time.monotonic()
        self._lost = lost
        self._tell = tell
        self._done = threading.Event()
        self._asked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._timer = threading.Timer(deadline - time.monotonic(), self._expire)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._thread.start()
        self._timer.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._end()
        self._timer.cancel()

    @property
    def may_hold(self) -> bool:
        """Whether the aggregator may still count on this owner: it has answered within a lease."""
        return time.monotonic() < self._heard + self._seconds

    def renew_now(self) -> None:
        """Have the aggregator asked at once whether the round goes on. From any thread."""
        self._asked.set()

    def _end(self) -> None:
        self._done.set()
        self._asked.set()

    def _expire(self) -> None:
        if not self._done.is_set():
            self._tell(events.DeadlinePassed())
            self._end()
            self._lost()

    def _run(self) -> None:
        while True:
            asked = self._asked.wait(self._pause)
            self._asked.clear()  # before the look at `done`, whose end of the work sets both
            if self._done.is_set():
                return
            try:
                self._renew()
                self._heard = time.monotonic()
            except (Unavailable, LimitExceeded) as error:
                self._tell(events.LeaseNotRenewed(error))
            except CairnError as error:
                if not self._done.is_set():
                    self._tell(events.RoundEndedMeanwhile(error))
                    self._lost()
                return
            if asked:
                self._done.wait(_LEAST_PAUSE_SECONDS)
