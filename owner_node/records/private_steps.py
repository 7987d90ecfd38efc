"""Which steps of private training an owner's ledger records for each task, in all rounds and jobs. Pure.

A training is counted from before its first step, so it counts whatever became of it, and a round that is trained again
counts again. Nothing takes back what is counted, `cairn reset` neither.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from cairn.tasks.accounting import PrivateSteps

Taken = tuple[PrivateSteps, ...]


class PrivateRecord:
    """Is told every entry of the ledger in order, by `note`."""

    def __init__(self) -> None:
        self._taken: defaultdict[str, list[PrivateSteps]] = defaultdict(list)
        self._last: dict[tuple[str, str], list[PrivateSteps]] = {}

    def taken(self, task: str) -> Taken:
        """All steps that were ever allowed to the task."""
        return tuple(self._taken.get(task, ()))

    def of_last_round(self, task: str, job: str) -> Taken:
        """What the last training of this task in this job was allowed: the next one is likely to ask for as much."""
        return tuple(self._last.get((task, job), ()))

    def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Take in an entry. Raises KeyError, TypeError or ValueError where a fact is missing or wrong."""
        if kind != "spent":
            return
        steps, task = PrivateSteps.of(facts), (facts["task"], facts["job"])
        self._taken[facts["task"]].append(steps)
        before = self._last.get(task, []) if facts["loop"] > 1 else []
        self._last[task] = [*before, steps]
