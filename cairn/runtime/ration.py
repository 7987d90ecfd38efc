"""Limits what a caller can have a node write down in an hour: the same thing, and all things together. Pure.

What is not written is counted by its caller, so that the numbers add up. A caller of which nothing was written
in the hour, because others have used it up, is counted among `OTHERS`: so the counts are bounded as well.
"""

from collections import Counter
from collections.abc import Hashable, Mapping

_COUNTED_EVERY_SECONDS = 3600.0
OTHERS = "others"


class Ration:
    """The lines of one file. `now` is the time of a monotonic clock, in seconds."""

    def __init__(self, of_same: int, of_caller: int, of_all: int) -> None:
        self._of_same = of_same
        self._of_caller = of_caller
        self._of_all = of_all
        self._since: float | None = None
        self._written: Counter[tuple[str, Hashable]] = Counter()
        self._by_caller: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()

    def allows(self, caller: str, what: Hashable | None, now: float) -> bool:
        """Whether to write it. Else it is counted. None is never the same. Ask `left_out` before."""
        if self._since is None:
            self._since = now
        if (
            (what is not None and self._written[caller, what] >= self._of_same)
            or self._by_caller[caller] >= self._of_caller
            or self._by_caller.total() >= self._of_all
        ):
            self._left_out[caller if self._by_caller[caller] else OTHERS] += 1
            return False
        self._written[caller, what] += 1
        self._by_caller[caller] += 1
        return True

    def left_out(self, now: float, *, at_end: bool = False) -> Mapping[str, int]:
        """By caller, what the hour that is over has left out; with `at_end`, the hour that is not over.

        Each number is told once, and then a new hour begins.
        """
        if self._since is None or not (at_end or now - self._since >= _COUNTED_EVERY_SECONDS):
            return {}
        told, self._left_out = self._left_out, Counter()
        self._since = None
        self._written.clear()
        self._by_caller.clear()
        return told
