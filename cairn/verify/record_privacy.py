"""Checks what an owner's tasks spent on private training, as its ledger says: epsilon is computed anew. Pure."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cairn.diagnostics.findings import Finding, failed, note, ok
from cairn.errors import InvalidMessage, UsageError
from cairn.tasks.accounting import PrivateSteps, epsilon_of
from cairn.verify.ledger import short

_CLOSE = 1e-3  # of epsilon: another version of the accountant may round otherwise


@dataclass
class _Spent:
    """What a task spent so far, and what its last entry says of that."""

    steps: list[PrivateSteps]
    entry: int = 0
    epsilon: float = 0.0
    allowed: float = 0.0
    delta: float = 0.0


class PrivateSpending:
    """Is told the entries `spent` of one owner's ledger in order."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: dict[str, _Spent] = {}

    def add(self, facts: Mapping[str, Any]) -> None:
        """Take in an entry, which has its number. Raises InvalidMessage where it is none."""
        try:
            steps = PrivateSteps.of(facts)
            epsilon, allowed = float(facts["epsilon"]), float(facts["epsilon_allowed"])
            delta = float(facts["delta"])
            task = str(facts["task"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InvalidMessage(
                "it does not say which private training of which task was allowed"
            ) from None
        if not 0 < epsilon <= allowed or not 0 < delta < 1:
            raise InvalidMessage(
                f"it allows epsilon {epsilon:.3g} at delta {delta:g}, where {allowed:g} was allowed"
            )
        spent = self._tasks.setdefault(task, _Spent([]))
        spent.steps.append(steps)
        spent.entry, spent.epsilon, spent.allowed, spent.delta = (
            facts["entry"],
            epsilon,
            allowed,
            delta,
        )

    def findings(self) -> Iterator[Finding]:
        """Whether the last epsilon of each task is that of all its steps, as dp-accounting computes it."""
        for task, spent in self._tasks.items():
            try:
                epsilon = epsilon_of(spent.steps, spent.delta)
            except UsageError as error:
                yield note(self._name, f"the epsilon of {short(task)} is not checked: {error}")
                return
            sentence = (
                f"private training of {short(task)}: epsilon {epsilon:.3g} of {spent.allowed:g} is spent, at delta"
                f" {spent.delta:g}"
            )
            if math.isclose(epsilon, spent.epsilon, rel_tol=_CLOSE):
                yield ok(self._name, sentence)
            else:
                yield failed(
                    self._name, f"{sentence}, and entry {spent.entry} says {spent.epsilon:.3g}"
                )
