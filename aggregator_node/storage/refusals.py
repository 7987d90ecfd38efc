"""Records what the aggregator refused, and to whom, so that its operator can see an attack.

The same refusal (caller, method, error and reason) is written once an hour. What is not written is counted: an
entry of the kind "not written" says at the end of the hour, or when the node stops, how many there were of a
caller. A node that is killed loses the counts of its last hour.
"""

import threading
from collections.abc import Mapping

import structlog

from aggregator_node.storage.store import Store
from cairn.errors import CairnError, Unavailable
from cairn.identity.names import NodeName
from cairn.protocol.words import reason_word
from cairn.runtime.clock import Clock
from cairn.runtime.ration import Ration

log = structlog.get_logger()

# An hour, and of the counts there are at most as many and one. An entry takes less than 400 bytes on the disk, so a
# day has at most 6 MB of them, and less than 0.6 MB of one caller.
ENTRIES_OF_CALLER = 60
ENTRIES = 300


class RefusalLog:
    """Every method may be called from any thread."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._ration = Ration(1, ENTRIES_OF_CALLER, ENTRIES)

    def refused(self, node: NodeName | None, method: str, error: CairnError) -> None:
        """Record a refusal, unless the same was recorded within the hour: then it is counted."""
        caller = node.uri if node is not None else "unknown"
        what = (method, type(error).__name__, reason_word(error.reason))
        self.count()
        with self._lock:
            if not self._ration.allows(caller, what, self._clock.monotonic()):
                return
        self._append(
            "refused",
            {"caller": caller, **dict(zip(("method", "error", "reason"), what, strict=True))},
        )

    def count(self, *, at_end: bool = False) -> None:
        """Record how many refusals were not written, once their hour is over or with `at_end`."""
        with self._lock:
            left_out = self._ration.left_out(self._clock.monotonic(), at_end=at_end)
        for caller, count in left_out.items():
            self._append("not written", {"caller": caller, "count": count})

    def _append(self, kind: str, facts: Mapping[str, object]) -> None:
        try:
            self._store.append_refusal(kind, facts)
        except Unavailable as trouble:  # the refusal itself stands
            log.error("a refusal could not be recorded", **facts, trouble=str(trouble))
