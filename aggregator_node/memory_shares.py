"""Decides who gets the aggregator's memory when coordinators compete for it. Pure: the clock is passed in.

Memory that is free may be had, until somebody waits for some. While a coordinator waits that would not have more
than an equal share of it, no other gets more than that share: as rounds end, the waiting one has its turn.
Equal shares are of the coordinators that hold memory or wait for some. Who asks for more than its share waits
for nobody's but the others' goodwill: it holds nobody up.
"""

from collections import Counter

WAITING_SECONDS = 60  # since a coordinator last asked in vain; it asks again every few seconds


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
        self._waits.pop(coordinator, None)
        self._waits = {who: at for who, at in self._waits.items() if now - at < WAITING_SECONDS}
        active = {coordinator, *self._waits, *+self._held}
        within_share = (self._held[coordinator] + nbytes) * len(active) <= self._nbytes
        if nbytes <= self.free and (within_share or not self._waits):
            return True
        if within_share:
            self._waits[coordinator] = now
        return False

    def take(self, coordinator: str, nbytes: int) -> None:
        self._held[coordinator] += nbytes

    def give_back(self, coordinator: str, nbytes: int) -> None:
        self._held[coordinator] -= nbytes
