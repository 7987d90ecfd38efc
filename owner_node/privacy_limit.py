"""The most that noisy releases may tell of this owner, over all jobs of a task. Pure."""

from dataclasses import dataclass

from cairn.protocol.aggregation import Aggregation
from cairn.protocol.privacy import PrivacyBudget, epsilon_of, rho_of
from cairn.tasks.settings import TaskSettings
from cairn.v1 import round_pb2 as pb


@dataclass(frozen=True)
class PrivacyLimit:
    """`max_epsilon` and `max_delta` of a task in the owner's file."""

    epsilon: float
    delta: float

    def spent(self, rho: float) -> float:
        """The epsilon of what was told, at this limit's delta."""
        return epsilon_of(rho, self.delta)

    def refusal(
        self, aggregation: Aggregation, rho: float, *, trains: bool
    ) -> tuple[str, "pb.Reason"] | None:
        """Why a round is declined, and the reason that others are told; None where it is not.

        `rho` is what was told before, in zCDP.
        """
        budget, allowed = PrivacyBudget.of(aggregation), f"{self.epsilon:g} (max_epsilon)"
        if budget is None or not trains:
            why = (
                "the round has no noise, and this owner's file allows of the task only trainings by the rule"
                f" private_mean, up to epsilon {allowed}"
            )
            return why, pb.REASON_RULE_REFUSED
        if budget.epsilon > self.epsilon or budget.delta > self.delta:
            why = (
                f"the job may tell epsilon {budget.epsilon:g} at delta {budget.delta:g} of one owner; this owner's file"
                f" allows {allowed} at {self.delta:g} (max_delta)"
            )
            return why, pb.REASON_RULE_REFUSED
        epsilon = self.spent(rho + rho_of(budget.noise))
        if epsilon > self.epsilon:
            why = (
                f"with this round, all releases of the task would tell epsilon {epsilon:.4g} of this owner; its file"
                f" allows {allowed} at delta {self.delta:g}"
            )
            return why, pb.REASON_BUDGET_SPENT
        return None


def privacy_limit_of(task: TaskSettings) -> PrivacyLimit | None:
    """What the owner's file says of a task; None where it says nothing."""
    return None if task.max_epsilon is None else PrivacyLimit(task.max_epsilon, task.max_delta)
