"""Recomputes, from a ledger, what private jobs have told of one owner. Pure: values in, findings out.

A ledger names the owners of each round's cohort, and how many of them a release counts; who was left out, only the
statement says. So what was told is known to the digit where all of a cohort were counted, and between two bounds where
some were not: it grows by one release at the most, by none only where the owner that was counted most was left out. A round
that was aborted because its noised result left the range of its type (NON_FINITE) may count as a release.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from cairn.diagnostics.findings import Finding, failed, ok
from cairn.errors import InvalidMessage
from cairn.ledger.chain import Entry
from cairn.protocol.aggregation import NUMBERS
from cairn.protocol.privacy import PrivacyBudget, agree
from cairn.protocol.words import reason_word
from cairn.v1 import round_pb2 as pb
from cairn.verify.ledger import LedgerCopy, short

_TOLD = ("epsilon", "delta")
_OUT_OF_RANGE = reason_word(pb.REASON_NON_FINITE)


def check_privacy(ledger: LedgerCopy) -> Iterator[Finding]:
    """Whether each release of a private job says as much as those before it and itself tell, and no other does."""
    jobs: dict[str, _Told] = {}
    for entry in ledger.entries:
        try:
            _follow(jobs, entry, ledger)
        except InvalidMessage as error:
            yield failed(ledger.name, f"entry {entry.number}: {error}")
            return
    for job, told in jobs.items():
        yield ok(ledger.name, f"what {short(job)} told of one owner is recomputed: {told}")


def _follow(jobs: dict[str, "_Told"], entry: Entry, ledger: LedgerCopy) -> None:
    facts, job = entry.facts, str(entry.facts.get("job"))
    if entry.kind == "job" and job in jobs:
        raise InvalidMessage(f"{short(job)} is registered twice, and what it told would count anew")
    if entry.kind == "job" and "privacy" in facts:
        jobs[job] = _Told(_budget(facts["privacy"]))
    elif entry.kind == "release" and job in jobs:
        jobs[job].add(facts, _cohort(facts, ledger))
    elif entry.kind == "abort" and job in jobs and facts.get("reason") == _OUT_OF_RANGE:
        jobs[job].add_abort(_cohort(facts, ledger))
    elif entry.kind == "release" and any(key in facts for key in _TOLD):
        raise InvalidMessage(f"{short(job)} has no budget, so it has no epsilon either")


def budget_of(ledger: LedgerCopy, job: str) -> PrivacyBudget | None:
    """The budget of a job, as its entry has it; None where it has none. Raises InvalidMessage."""
    for entry in ledger.entries:
        if entry.kind == "job" and entry.facts.get("job") == job and "privacy" in entry.facts:
            return _budget(entry.facts["privacy"])
    return None


class _Told:
    """What the releases of one job have told, so far."""

    def __init__(self, budget: PrivacyBudget) -> None:
        self._budget = budget
        self._released = 0
        self._releases = 0  # that counted the owner who was counted most, by the last statement
        self._aborted = 0  # which may count
        self._at_least = Counter[str]()
        self._at_most = Counter[str]()

    def __str__(self) -> str:
        budget, epsilon = self._budget, self._budget.spent_by(self._releases)
        return f"epsilon {epsilon:.4g} of {budget.epsilon:g} (delta {budget.delta:g}) after {self._released} releases"

    def add_abort(self, cohort: list[str]) -> None:
        """Take in a round whose result left its range."""
        self._aborted += 1
        self._at_most.update(cohort)

    def add(self, facts: Mapping[str, Any], cohort: list[str]) -> None:
        """Take in a release. Raises InvalidMessage where it says anything else than it tells."""
        self._released += 1
        self._at_most.update(cohort)
        if facts.get("contributors") == len(cohort):
            self._at_least.update(cohort)
        low = max(self._releases, *self._at_least.values(), 1)
        high = min(self._releases + self._aborted + 1, max(self._at_most.values(), default=0))
        epsilon = _number(facts.get("epsilon"), "epsilon")
        for count in range(low, high + 1):
            if agree(epsilon, self._budget.spent_by(count)):
                self._releases = count
                break
        else:
            said = " or ".join(f"{self._budget.spent_by(n):.6g}" for n in range(low, high + 1))
            raise InvalidMessage(f"it has epsilon {epsilon:.6g}, recomputed {said}")
        if facts.get("delta") != self._budget.delta or not self._budget.allows(self._releases):
            raise InvalidMessage(
                f"it has epsilon {epsilon:.6g} at delta {short(facts.get('delta'))}; the job allows"
                f" {self._budget.epsilon:g} at {self._budget.delta:g}"
            )


def _cohort(facts: Mapping[str, Any], ledger: LedgerCopy) -> list[str]:
    opening = ledger.opening(str(facts.get("manifest_digest")))
    cohort = opening.facts.get("cohort") if opening is not None else None
    if not isinstance(cohort, list) or not all(isinstance(owner, str) for owner in cohort):
        raise InvalidMessage("no entry says which owners the round had")
    return cohort


def _budget(privacy: object) -> PrivacyBudget:
    """What anybody may have written of a job's budget."""
    if not isinstance(privacy, dict):
        raise InvalidMessage("the job's budget is no table")
    values = {}
    for key in ("noise", *_TOLD):
        values[key] = _number(privacy.get(key), key)
        try:
            NUMBERS[pb.RULE_PRIVATE_MEAN][key].check(values[key])
        except ValueError as error:
            raise InvalidMessage(f"{key} = {values[key]:g} {error}") from None
    return PrivacyBudget(**values)


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidMessage(f"its {name} is {short(value)}, no number")
    try:
        return float(value)
    except OverflowError:
        raise InvalidMessage(f"its {name} is {short(value)}, too large a number") from None
