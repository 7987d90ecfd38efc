"""Watches processes during a run: processor time at round ends, and the peaks of memory."""

import itertools
import time
from collections.abc import Mapping
from pathlib import Path

from bench.proc import cpu_seconds, peak_resident_bytes, proportional_bytes, with_descendants

_LOOK_SECONDS = 0.2
_MOMENT_SECONDS = 0.01


class PeakMemory:
    """The most memory that was seen so far of some processes and all that came of them.

    Looking makes the processes slower, so at most the given part of the time is spent on it.
    """

    def __init__(self, pids: Mapping[str, int], share_of_time: float) -> None:
        self._pids = pids
        self._share_of_time = share_of_time
        self._next = 0.0
        self.total_bytes = 0
        self.role_bytes: dict[str, int] = {}

    def look(self) -> None:
        """Look, if it is time to."""
        begun = time.monotonic()
        if begun < self._next:
            return
        total = sum(proportional_bytes(pid) for pid in all_of(self._pids))
        self.total_bytes = max(self.total_bytes, total)
        for name, pid in self._pids.items():
            for role, process in _roles(name, pid):
                peak = max(self.role_bytes.get(role, 0), peak_resident_bytes(process))
                self.role_bytes[role] = peak
        spent = time.monotonic() - begun
        self._next = begun + max(_LOOK_SECONDS, spent / self._share_of_time)


class Watch:
    """What was seen so far of a federation, of which `history` has a line a round.

    `look` is to be called again and again. The rounds from the second to that of the number `last` are
    timed: during them it does not look at the memory.
    """

    def __init__(self, pids: Mapping[str, int], history: Path, last: int) -> None:
        self._pids = pids
        self._history = history
        self._last = last
        self._cpu_seconds_at: dict[int, float] = {}  # by the number of rounds that were done
        self._time_at: dict[int, float] = {}
        self.memory = PeakMemory(pids, share_of_time=0.1)

    def look(self) -> None:
        time.sleep(_MOMENT_SECONDS)
        done = self._rounds_done()
        if done and done not in self._time_at:
            self._time_at[done] = time.monotonic()
            self._cpu_seconds_at[done] = sum(cpu_seconds(pid) for pid in all_of(self._pids))
        if done == 0 or done >= self._last:
            self.memory.look()

    def cpu_seconds_per_round(self) -> float:
        """Of the timed rounds; where they passed too fast to be told apart, of all so far."""
        seen = self._cpu_seconds_at
        timed = [done for done in seen if done <= self._last] or list(seen)
        first, last = min(timed), max(timed)
        if first == last:
            return seen[last] / last
        return (seen[last] - seen[first]) / (last - first)

    def seconds_between_rounds(self) -> tuple[float, ...]:
        """From the end of a timed round to that of the next; none where they passed too fast."""
        timed = [(done, at) for done, at in self._time_at.items() if done <= self._last]
        return tuple((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(timed))

    def _rounds_done(self) -> int:
        try:
            return self._history.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0


def all_of(pids: Mapping[str, int]) -> list[int]:
    return [process for pid in pids.values() for process in with_descendants(pid)]


def _roles(name: str, pid: int) -> list[tuple[str, int]]:
    """A node's process by its role; the rest of an owner's are those that train."""
    role = "owner" if name.startswith("owner") else name
    own, *others = with_descendants(pid)
    return [(role, own), *((f"{role}_training", other) for other in others)]
