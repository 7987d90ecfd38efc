"""Decides when an aggregator that runs for one job may stop: when its coordinator has left.

No message says that a coordinator has left: after its last release it may still want an evaluation, and after it has
said that its job has ended (RegisterJob) it asks for the last entries of the ledger. So the aggregator waits until it has heard nothing for a while.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cairn.runtime.clock import Clock
from cairn.runtime.timeouts import SHUTDOWN_SECONDS


class IdleShutdown:
    """Counts the coordinators' calls. Every method may be called from any thread."""

    def __init__(self, patience_seconds: float, clock: Clock) -> None:
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._under_way = 0
        self._heard = clock.monotonic()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Mark a call for as long as it is under way; collecting a large model takes its time."""
        with self._lock:
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                self._heard = self._clock.monotonic()

    def is_due(self, *, completed: bool) -> bool:
        """Whether nobody is to be expected any more, where the jobs are `completed` or are not."""
        with self._lock:
            quiet = self._clock.monotonic() - self._heard
            # Longer than the moment for which owners are waited for between a release and its evaluation.
            wait = SHUTDOWN_SECONDS if completed else self._patience_seconds
            return self._under_way == 0 and quiet >= wait
