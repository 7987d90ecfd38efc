"""Keeps callers that are refused again and again from filling the log. Lines that no peer can cause are not limited."""

import threading
from collections.abc import MutableMapping
from typing import Any

import structlog

from cairn.clock import Clock
from cairn.ration import Ration

# An hour. A line has less than 1 KiB, so a day of refusals is at most 7 MB, and of one caller 1.5 MB.
_SAME_LINES = 10
_LINES_OF_CALLER = 60
_LINES = 300
_TEXT = 1000  # characters of a line's reason

# The events that peers can cause as often as they like: who caused one, and what makes two of them the same.
_CAUSED_BY_PEERS = {
    "refused": ("caller", ("method", "error")),
    "invitation refused": (None, ("reason",)),
}


class LogLimit:
    """A processor of structlog. Leaves out what refusals there are too many of in an hour, and says how many those were."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ration = Ration(_SAME_LINES, _LINES_OF_CALLER, _LINES)

    def __call__(
        self, _logger: Any, _method: str, line: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        self.report(at_end=False)
        if line["event"] not in _CAUSED_BY_PEERS:
            return line
        who, same = _CAUSED_BY_PEERS[line["event"]]
        caller = "the coordinator" if who is None else str(line.get(who))
        what = (line["event"], *(str(line.get(field)) for field in same))
        with self._lock:
            allowed = self._ration.allows(caller, what, self._clock.monotonic())
        if not allowed:
            raise structlog.DropEvent
        return {**line, "reason": str(line.get("reason"))[:_TEXT]}

    def report(self, *, at_end: bool = True) -> None:
        """Log how many lines of each caller were left out, once their hour is over or with `at_end`."""
        with self._lock:
            left_out = self._ration.left_out(self._clock.monotonic(), at_end=at_end)
        for caller, count in left_out.items():
            structlog.get_logger().warning("refusals were not logged", caller=caller, count=count)
