"""What the releases of a private job have told of each owner, and whether another may follow.

An owner has spent what the releases tell in which it was counted. A round whose noised result left the range of its type
counts as well: that it was aborted for that follows from the result. Both are counted in the store's rounds, each time
anew: their rows are written in the transaction of their ledger entries, so there is no second book that a crash
could leave behind or ahead.
"""

from collections import Counter
from collections.abc import Collection, Iterable

from aggregator_node.rounds.upload import RoundContext
from aggregator_node.storage.rows import RoundRow
from aggregator_node.storage.store import Store
from cairn.errors import WrongState
from cairn.protocol.messages import parse
from cairn.protocol.privacy import PrivacyBudget
from cairn.v1 import round_pb2 as pb


class Spending:
    """Every method may be called from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def check(self, context: RoundContext) -> None:
        """Raise WrongState where a release that counts the whole cohort would tell too much of one of its owners."""
        budget = _budget_of(context)
        if budget is None:
            return
        counted = self._counted(context)
        spent = [o for o in context.manifest.cohort if not budget.allows(counted[o] + 1)]
        if spent:
            most = max(counted[owner] for owner in spent)
            raise WrongState(
                f"the budget of {context.job.name} is spent: one more release than the {most} that counted"
                f" {', '.join(spent)} would tell epsilon {budget.spent_by(most + 1):.4g} of one owner, and the job allows"
                f" {budget.epsilon:g} (delta {budget.delta:g})",
                pb.REASON_BUDGET_SPENT,
            )

    def after(self, context: RoundContext, contributors: Collection[str]) -> pb.Privacy | None:
        """What the job has told of an owner at the most, with one more release that counts these; None without noise."""
        budget = _budget_of(context)
        if budget is None:
            return None
        counted = self._counted(context)
        counted.update(contributors)
        epsilon = budget.spent_by(max(counted.values()))
        if epsilon > budget.epsilon:
            raise AssertionError("a release beyond the job's epsilon was asked for")
        return pb.Privacy(epsilon=epsilon, delta=budget.delta)

    def _counted(self, context: RoundContext) -> Counter[str]:
        return results_by_owner(self._store.results(context.manifest.job))


def results_by_owner(results: Iterable[RoundRow]) -> Counter[str]:
    """In how many of these rounds, which had a result, each owner was counted."""
    counted = Counter[str]()
    for row in results:
        cohort = parse(pb.RoundManifest, parse(pb.Signed, row.manifest).body).cohort
        counted.update(set(cohort) - {owner for owner, _ in row.exclusions})
    return counted


def _budget_of(context: RoundContext) -> PrivacyBudget | None:
    return PrivacyBudget.of(context.job.aggregation) if context.manifest.trains else None
