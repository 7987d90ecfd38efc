"""Decides who gets the aggregator's memory when coordinators compete for it. Pure: the clock is passed in.

Whoever asks gets what is free, until somebody waits. While a coordinator waits for memory with which it would
have no more than an equal share, no other gets more than that: as rounds end, the waiting one has its turn.
The shares are those of the coordinators that hold memory or wait for it. One that asks for more than its share
holds nobody up, and one that has not asked for as long as a coordinator's patience lasts waits no longer.
"""

from collections import Counter

from cairn.runtime.timeouts import RECONNECT_TIMEOUT_SECONDS


class MemoryShares:
    """What each coordinator holds, and who waits. One call at a time; times are of a monotonic clock."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._held: Counter[str] = Counter()
        self._waits: dict[str, float] = {}  # coordinator → when it last asked in vain

    @property
    def free(self) -> int:
        return self._nbytes - self._held.total()

    def may_take(self, coordinator: str, nbytes: int, now: float) -> bool:
        """Whether the coordinator may have so much more now; if it may not, it waits from now on."""
        self._waits = {
            who: at for who, at in self._waits.items() if now - at < RECONNECT_TIMEOUT_SECONDS
        }
        active = {coordinator, *self._waits, *+self._held}
        within_share = (self._held[coordinator] + nbytes) * len(active) <= self._nbytes
        others_wait = any(who != coordinator for who in self._waits)
        if nbytes <= self.free and (within_share or not others_wait):
            self._waits.pop(coordinator, None)
            return True
        if within_share:
            self._waits[coordinator] = now
        return False

    def take(self, coordinator: str, nbytes: int) -> None:
        self._held[coordinator] += nbytes

    def give_back(self, coordinator: str, nbytes: int) -> None:
        self._held[coordinator] -= nbytes
