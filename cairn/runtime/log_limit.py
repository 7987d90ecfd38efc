"""Keeps peers from filling a node's log: of the lines that they can cause as often as they like, so many in an hour."""

import threading
from collections.abc import MutableMapping
from typing import Any

import structlog

from cairn.runtime.clock import Clock
from cairn.runtime.ration import Ration

# An hour. A line has less than 1 KiB, so a day of them is at most 7 MB, and of one caller 1.5 MB.
_SAME_LINES = 10
_LINES_OF_CALLER = 60
_LINES = 300
_TEXT = 500  # characters of a reason

# What a caller is refused, or can have as often as it likes: who it was, and what makes two of them the same.
_OF_CALLERS = {
    "job registered": ("coordinator", ("job",)),
    "refused": ("caller", ("method", "error", "reason")),
    "invitation refused": ("", ("reason",)),
}
# What else a peer can have a node say, each with its own number of lines: whoever connects, and an owner's coordinator.
_SAID_OF_PEERS = {
    "connections without an admitted call were shut down",
    "attending",
    "could not decline",
    "declined",
    "left out of the round",
    "the aggregator's answer on a round is not good",
    "the coordinator gave up a round",
    "the coordinator has no job for this owner",
    "the coordinator says more than this owner can work off; left out",
    "the coordinator sent a statement that is not the aggregator's",
    "the coordinator sent an event this version does not know",
    "the coordinator's stream broke off",
    "the coordinator's stream cannot be followed",
    "the job has ended",
    "the lease could not be renewed, trying again",
    "the receipt of a round was not fetched",
    "the receipt was not fetched",
    "the statement of a round was not fetched",
    "update was accepted before",
    "waiting for the end of a round of another job",
    "waiting in line to push",
}

Line = MutableMapping[str, Any]


class LogLimit:
    """A processor of structlog. Leaves out what is too much in an hour, and says how many lines that were."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ration = Ration(_SAME_LINES, _LINES_OF_CALLER, _LINES)

    def __call__(self, _logger: Any, _method: str, line: Line) -> Line:
        self.report(at_end=False)
        cause, what = _cause_of(line)
        if cause is None:
            return line
        with self._lock:
            allowed = self._ration.allows(cause, what, self._clock.monotonic())
        if not allowed:
            raise structlog.DropEvent
        return {key: _short(value) for key, value in line.items()}

    def report(self, *, at_end: bool = True) -> None:
        """Log how many lines were left out of each caller or kind, once their hour is over or with `at_end`."""
        with self._lock:
            left_out = self._ration.left_out(self._clock.monotonic(), at_end=at_end)
        for cause, count in left_out.items():
            structlog.get_logger().warning("lines were left out", cause=cause, count=count)


def _cause_of(line: Line) -> tuple[str | None, tuple[str, ...] | None]:
    """Whose number of lines it counts towards, if any, and what the same line would have in common."""
    event = line["event"]
    if event in _OF_CALLERS:
        who, same = _OF_CALLERS[event]
        return str(line.get(who, "the coordinator")), tuple(str(line.get(field)) for field in same)
    if event in _SAID_OF_PEERS and "owner" not in line:  # with it, the aggregator says so
        return event, None
    return None, None


def _short(value: object) -> object:
    return value[:_TEXT] if isinstance(value, str) else value
