"""Cancels a stream after IDLE_SECONDS without data; its total time is unlimited."""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cairn.runtime.clock import Clock
from cairn.runtime.timeouts import IDLE_SECONDS


@contextmanager
def cancel_when_idle(
    cancel: Callable[[], object], clock: Clock | None = None, most_seconds: float = math.inf
) -> Iterator[Callable[[], None]]:
    """Call `cancel` after `IDLE_SECONDS`, or `most_seconds`, in which nobody called what is yielded."""
    clock = clock or Clock()
    seconds = min(IDLE_SECONDS, most_seconds)
    over = threading.Event()
    heard_at = clock.monotonic()

    def heard() -> None:
        nonlocal heard_at
        heard_at = clock.monotonic()

    def watch() -> None:
        while (left := heard_at + seconds - clock.monotonic()) > 0:
            if over.wait(left):
                return
        cancel()

    threading.Thread(target=watch, name="idle-timeout", daemon=True).start()
    try:
        yield heard
    finally:
        over.set()
