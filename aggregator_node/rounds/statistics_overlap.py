"""Remembers what was counted of whom, and refuses statistics that may not stand beside earlier ones. Pure.

Sums of counts are exact, so two releases that differ by little tell what the difference holds: with one owner more, with a
range that ends one value earlier, with cells that are shifted, or after one patient more has come. So, of the statistics of
one task, whoever asked for them:

1. Two releases count the same owners, or have nobody in common.
2. Of owners in common, a column is released so many times at the most, by default once.
3. Each time it is the same column to the number: its range, its cells and the smallest cell that is released.
"""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from aggregator_node.rounds.upload import RoundContext
from cairn.errors import WrongState
from cairn.protocol.statistics import Column, Statistics
from cairn.v1 import round_pb2 as pb


@dataclass(frozen=True)
class _Counted:
    """What one release counts."""

    owners: frozenset[str]
    statistics: Statistics

    def column(self, name: str) -> Column | None:
        return next((each for each in self.statistics.columns if each.name == name), None)


class StatisticsOverlap:
    """Whoever has it holds a lock around every call. A column is released `most` times at the most."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._released: defaultdict[str, dict[bytes, _Counted]] = defaultdict(dict)  # by task

    def check(self, context: RoundContext, owners: Collection[str]) -> None:
        """Raise WrongState where a release over these owners may not stand beside the earlier ones of its task."""
        new = _counted(context, owners)
        others = [
            each
            for each in self._released.get(context.job.task, {}).values()
            if each.owners & new.owners
        ]
        if any(each.owners != new.owners for each in others):
            raise _refused(
                f"earlier statistics of the task {context.job.task} count some of these owners together with others:"
                " the difference would tell of single owners"
            )
        for column in new.statistics.columns:
            before = [each for each in others if each.column(column.name)]
            if len(before) >= self._most:
                raise _refused(
                    f"the column {column.name} of the task {context.job.task} was released as often as the aggregator's"
                    f" file allows ({self._most}, max_statistics): what has changed since would tell of single examples"
                )
            min_cell = new.statistics.min_cell
            if any(
                (each.column(column.name), each.statistics.min_cell) != (column, min_cell)
                for each in before
            ):
                raise _refused(
                    f"the column {column.name} of the task {context.job.task} was released with another range, other"
                    " bins or another min_cell: both together would tell of single examples. Ask for the same again"
                )

    def remember(
        self, manifest_digest: bytes, context: RoundContext, owners: Collection[str]
    ) -> None:
        """Remember a release that is made, or was made before this process began."""
        self._released[context.job.task][manifest_digest] = _counted(context, owners)

    def forget(self, manifest_digest: bytes, context: RoundContext) -> None:
        """The round is not released after all."""
        self._released[context.job.task].pop(manifest_digest, None)


def _counted(context: RoundContext, owners: Collection[str]) -> _Counted:
    if context.job.statistics is None:
        raise AssertionError(f"{context.job.name} counts nothing")
    return _Counted(frozenset(owners), context.job.statistics)


def _refused(why: str) -> WrongState:
    return WrongState(why, pb.REASON_COHORT_DIFFERENCE)
