"""Private training in `cairn try`: what one round spends of an owner's budget, and how many rounds that allows."""

from dataclasses import dataclass, field

import click
from pydantic import ValidationError

from cairn.errors import UsageError
from cairn.tasks.accounting import PrivateSteps, check_installed, epsilon_of
from cairn.tasks.loader import TaskFailed
from cairn.tasks.private import Privacy
from cairn.tasks.settings import MAX_ROUNDS, PrivateSettings
from cairn.v1 import round_pb2 as pb

private_option = click.option(
    "--private",
    type=float,
    nargs=4,
    metavar="EPSILON DELTA NOISE CLIP",
    help="Train as with this `private` table in the owner's file.",
)


@dataclass
class TriedBudget:
    """The budget of a trial: nothing was spent of it before, and nothing of it is recorded."""

    settings: PrivateSettings
    asked: list[PrivateSteps] = field(default_factory=list)

    @classmethod
    def of(cls, numbers: tuple[float, float, float, float] | None) -> "TriedBudget | None":
        """From the option. Raises UsageError for numbers that an owner's file could not have."""
        if numbers is None:
            return None
        check_installed()
        keys = ("epsilon", "delta", "noise", "clip")
        try:
            settings = PrivateSettings(**dict(zip(keys, numbers, strict=True)))
        except ValidationError as error:
            wrong = error.errors()[0]
            key = f"{wrong['loc'][0]} = {wrong['input']:g}"
            raise UsageError(f"--private: {key}: {wrong['msg']}") from None
        return cls(settings)

    @property
    def privacy(self) -> Privacy:
        return Privacy(self.settings.noise, self.settings.clip, self._spend)

    def _spend(self, sample_rate: float, steps: int) -> None:
        self.asked.append(PrivateSteps(sample_rate, self.settings.noise, steps))
        epsilon = epsilon_of(self.asked, self.settings.delta)
        if epsilon > self.settings.epsilon:
            raise TaskFailed(
                f"this round alone makes epsilon {epsilon:.3g}, and the owner's file would allow {self.settings.epsilon:g}:"
                " more noise, fewer epochs or smaller batches make it less",
                pb.REASON_BUDGET_SPENT,
            )

    def lines(self) -> list[str]:
        """What to print after the round, which trained privately."""
        budget = self.settings
        rounds = self._rounds()
        first, last = (epsilon_of(self.asked * n, budget.delta) for n in (1, rounds))
        loops = [
            f"  {each.steps} steps, each record in one of {1 / each.sample_rate:g} batches, noise {budget.noise:g}, clip"
            f" {budget.clip:g}"
            for each in self.asked
        ]
        return [
            "private training:",
            *loops,
            f"  epsilon {first:.3g} of {budget.epsilon:g} would be spent by this round, at delta {budget.delta:g}",
            f"  epsilon {last:.3g} after {rounds} such rounds; then the task is declined (BUDGET_SPENT)",
        ]

    def _rounds(self) -> int:
        """How many such rounds the budget allows; no more than an owner takes part in by default."""

        def allows(rounds: int) -> bool:
            return epsilon_of(self.asked * rounds, self.settings.delta) <= self.settings.epsilon

        good, bad = 1, 2
        while bad <= MAX_ROUNDS and allows(bad):
            good, bad = bad, 2 * bad
        bad = min(bad, MAX_ROUNDS + 1)
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if allows(middle) else (good, middle)
        return good
