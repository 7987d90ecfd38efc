"""Adds updates to the mean in the order of their owners' names, whatever order they arrive in.

Floating-point sums depend on their order. So an update waits in memory until every owner before it is
either added or known not to come; then it is added and its memory is given back.
"""

from collections.abc import Collection

from aggregator_node.averaging import Mean
from cairn.tensors import Schema


class OrderedSum:
    """The running mean of one round."""

    def __init__(self, schema: Schema, cohort: Collection[str]) -> None:
        """Prepare for updates of the owners in `cohort`."""
        self._schema = schema
        self._mean: Mean | None = None
        self._added = 0
        self._ahead = sorted(cohort)
        self._waiting: dict[str, tuple[bytearray, int]] = {}

    def add(self, owner: str, payload: bytearray, weight: int) -> None:
        """Take a complete and accepted update."""
        if owner not in self._ahead:
            raise AssertionError(f"{owner} was added or passed over before")
        self._waiting[owner] = (payload, weight)
        while self._ahead and self._ahead[0] in self._waiting:
            self._add_next()

    def skip(self, owner: str) -> None:
        """The owner will not come in this round."""
        if owner in self._ahead:
            self._ahead.remove(owner)
        while self._ahead and self._ahead[0] in self._waiting:
            self._add_next()

    def result(self, count: int) -> bytearray:
        """The average of all updates that were taken, which must be `count`.

        To count an update and not to add it would release an average of fewer than is stated.
        """
        self._ahead = [owner for owner in self._ahead if owner in self._waiting]
        while self._ahead:
            self._add_next()
        if self._mean is None or self._added != count:
            raise AssertionError(f"{self._added} updates were added where {count} are counted")
        out = bytearray(self._schema.total_bytes)
        self._mean.result(out)
        return out

    def _add_next(self) -> None:
        payload, weight = self._waiting.pop(self._ahead.pop(0))
        if self._mean is None:
            self._mean = Mean(self._schema)
        self._mean.add(payload, weight)
        self._added += 1
