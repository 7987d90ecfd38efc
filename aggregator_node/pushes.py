"""Who is pushing now: one push of an owner at a time, and none that is silent for long.

The round that it belongs to holds its lock around every call of `Pushes`.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from aggregator_node.push import Push
from cairn.clock import Clock
from cairn.errors import TooMuch

log = structlog.get_logger()

IDLE_SECONDS = 30  # a push that brings nothing for so long is ended


class Pushes:
    """The pushes under way in one round, by owner."""

    def __init__(self) -> None:
        self._of: dict[str, Push] = {}

    def check_free(self, owner: str) -> None:
        """Raise TooMuch while the owner has a push under way."""
        if owner in self._of:
            raise TooMuch("another push of this owner is under way")

    def begin(self, owner: str, push: Push) -> None:
        self.check_free(owner)
        self._of[owner] = push

    def end(self, owner: str, push: Push) -> None:
        """The push is over, or complete; may be said twice."""
        if self._of.get(owner) is push:
            del self._of[owner]

    def next_idle(self) -> list[float]:
        """When each push would have been silent for too long, on the monotonic clock."""
        return [push.heard_at + IDLE_SECONDS for push in self._of.values()]

    def end_idle(self, now: float) -> None:
        """Cancel those that have been silent for too long."""
        for owner, push in self._of.items():
            if now >= push.heard_at + IDLE_SECONDS:
                log.warning("idle push ended", owner=owner)
                push.heard_at = now
                push.cancel()

    def cancel_all(self) -> None:
        for push in self._of.values():
            push.cancel()


@contextmanager
def watched(push: Push, clock: Clock) -> Iterator[None]:
    """End a push that falls silent inside: for one that no open round looks after."""
    over = threading.Event()

    def watch() -> None:
        while (left := push.heard_at + IDLE_SECONDS - clock.monotonic()) > 0:
            if over.wait(left):
                return
        log.warning("idle push ended after the round")
        push.cancel()

    threading.Thread(target=watch, name="idle-push", daemon=True).start()
    try:
        yield
    finally:
        over.set()
