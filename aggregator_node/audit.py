"""Records what the aggregator refused, and to whom, so that its operator can see an attack."""

import threading
from collections import Counter
from dataclasses import dataclass

import structlog

from aggregator_node.store import Store
from cairn.clock import Clock
from cairn.errors import CairnError, Unavailable
from cairn.identity import NodeName
from cairn.messages import reason_word

log = structlog.get_logger()

_ENTRIES_A_MINUTE = 60  # of one caller: a flood must not fill the disk
_MINUTE = 60.0


@dataclass
class _Allowance:
    """What one caller has left of the minute that began at `since`."""

    since: float
    left: int = _ENTRIES_A_MINUTE


class Audit:
    """Every method may be called from any thread."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._allowances: dict[str, _Allowance] = {}
        self._left_out: Counter[str] = Counter()

    def refused(self, node: NodeName | None, method: str, error: CairnError) -> None:
        """Record a refusal; beyond a caller's allowance only how many there were is kept."""
        caller = node.uri if node is not None else "unknown"
        with self._lock:
            if not self._allow(caller):
                self._left_out[caller] += 1
                return
            left_out = self._left_out.pop(caller, 0)
        facts = {
            "caller": caller,
            "method": method,
            "error": type(error).__name__,
            "reason": reason_word(error.reason),
        }
        try:
            self._store.append_refusal(facts | ({"left_out_before": left_out} if left_out else {}))
        except Unavailable as trouble:  # the refusal itself stands
            log.error("a refusal could not be recorded", trouble=str(trouble))

    def _allow(self, caller: str) -> bool:
        now = self._clock.monotonic()
        allowance = self._allowances.setdefault(caller, _Allowance(now))
        if now - allowance.since >= _MINUTE:
            allowance.since, allowance.left = now, _ENTRIES_A_MINUTE
        allowance.left -= 1
        return allowance.left >= 0
