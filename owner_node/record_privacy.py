"""Keeps the account of a task's private training: allows each loop before its first step, and records it durably.

The task runs in a process of its own, which asks here before it draws any record (cairn/tasks/private.py). What is
recorded then counts, whether or not an update leaves: a crash can cost some of the budget, and never gives any back.
"""

from collections.abc import Mapping
from typing import Any

from cairn.errors import CairnError
from cairn.tasks.accounting import PrivateSteps, epsilon_of
from cairn.tasks.loader import TaskFailed
from cairn.tasks.settings import PrivateSettings
from cairn.v1 import round_pb2 as pb
from owner_node import events
from owner_node.events import Observer
from owner_node.invitation import Declined, Invited
from owner_node.records.ledger import NotRecorded, OwnerLedger, round_facts


class PrivacyAccount:
    """The budgets of the tasks whose training is private, as this owner's file has them."""

    def __init__(
        self, ledger: OwnerLedger, budgets: Mapping[str, PrivateSettings], tell: Observer
    ) -> None:
        self._ledger = ledger
        self._budgets = budgets
        self._tell = tell

    def open(self, invited: Invited) -> "RoundSpending | None":
        """What the training of this round may spend; None where it need not be private."""
        budget = self._budgets.get(invited.job.task)
        if budget is None or not invited.manifest.trains:
            return None
        return RoundSpending(self._ledger, budget, invited, self._tell)


class RoundSpending:
    """Answers the training process in one round. `budget` has the noise and the clipping norm that it must use."""

    def __init__(
        self, ledger: OwnerLedger, budget: PrivateSettings, invited: Invited, tell: Observer
    ) -> None:
        self.budget = budget
        self._ledger = ledger
        self._invited = invited
        self._tell = tell
        self._loops = 0
        self._refused: CairnError | None = None

    def ask(self, question: Any) -> str:
        """Allow a loop, by its `sample_rate` and `steps`, and record it; or say why not. Never raises."""
        if self._refused is None:
            try:
                self._spend(question)
            except (Declined, TaskFailed, NotRecorded) as error:
                self._refused = error
        return str(self._refused or "")

    def check(self) -> None:
        """Raise what a loop was refused for, in place of what the task made of that; TaskFailed where none was asked for."""
        if self._refused is not None:
            raise self._refused
        if not self._loops:
            raise TaskFailed(
                "the task trained without cairn.private, which this owner's file demands (private); nothing leaves"
            )

    def check_refusal(self) -> None:
        """As `check`, after a training that failed."""
        if self._refused is not None:
            raise self._refused

    def _spend(self, question: Any) -> None:
        task, budget = self._invited.job.task, self.budget
        try:
            steps = PrivateSteps.of({**question, "noise": budget.noise})
        except (KeyError, TypeError, ValueError) as error:
            raise TaskFailed(f"the task asked for a private loop that is none: {error}") from None
        taken = self._ledger.past.private.taken(task)
        epsilon = epsilon_of([*taken, steps], budget.delta)
        if epsilon > budget.epsilon:
            spent = epsilon_of(taken, budget.delta)
            raise Declined(
                f"{steps.steps} more steps of the task {task} would make epsilon {epsilon:.3g}, it is {spent:.3g} by now,"
                f" and this owner's file allows {budget.epsilon:g} (private.epsilon)",
                pb.REASON_BUDGET_SPENT,
            )
        self._loops += 1
        self._ledger.record("spent", self._facts(steps, epsilon))
        self._tell(events.PrivacySpent(*self._invited.ids, epsilon, budget.epsilon, budget.delta))

    def _facts(self, steps: PrivateSteps, epsilon: float) -> dict[str, object]:
        return {
            **round_facts(self._invited),
            "task": self._invited.job.task,
            "loop": self._loops,
            "sample_rate": steps.sample_rate,
            "steps": steps.steps,
            "noise": steps.noise,
            "clip": self.budget.clip,
            "epsilon": epsilon,
            "epsilon_allowed": self.budget.epsilon,
            "delta": self.budget.delta,
        }
