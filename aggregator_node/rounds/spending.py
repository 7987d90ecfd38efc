"""What the releases of a private job have told of each owner, and whether another may follow.

An owner has spent what the releases tell in which it was counted. A round whose noised result left the range of its type
counts as well: that it was aborted for that follows from the result. Both are counted in the store's rounds, whose rows are
written in the transaction of their ledger entries, so there is no second book that a crash could leave behind or ahead.
"""

import threading
from collections import Counter
from collections.abc import Collection

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
        self._lock = threading.Lock()
        # job → the last round that was looked at, and how often each owner was counted up to it
        self._seen: dict[str, tuple[int, Counter[str]]] = {}

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
        """How often each owner was counted. A job has one round at a time, so a result never follows a later one."""
        job = context.manifest.job
        with self._lock:
            last, counted = self._seen.get(job, (0, Counter[str]()))
            for row in self._store.results(job, after=last):
                counted.update(_counted_in(row))
                last = max(last, row.number)
            self._seen[job] = last, counted
            return counted.copy()


def _counted_in(row: RoundRow) -> set[str]:
    cohort = parse(pb.RoundManifest, parse(pb.Signed, row.manifest).body).cohort
    return set(cohort) - {owner for owner, _ in row.exclusions}


def _budget_of(context: RoundContext) -> PrivacyBudget | None:
    return PrivacyBudget.of(context.job.aggregation) if context.manifest.trains else None
