"""Checks that the rounds of a job keep to its groups, as far as a ledger tells. Pure: values in, findings out."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from cairn.verify.ledger import Finding, LedgerCopy, failed, short


def check_groups(ledger: LedgerCopy) -> Iterator[Finding]:
    """Whether each round of a job with groups was opened with owners of one of them.

    A release counts owners of its round's cohort and no others (see `check_recorded`), so it counts owners of one
    group as well. Nothing is said of jobs without groups.
    """
    groups: dict[str, dict[str, int | None]] = {}
    rounds = Counter[str]()
    for entry in ledger.entries:
        facts = entry.facts
        job = str(facts.get("job"))
        if entry.kind == "job" and "groups" in facts:
            groups[job] = _group_of_each(facts["groups"])
        elif entry.kind == "open" and job in groups:
            rounds[job] += 1
            if not _is_of_one(groups[job], facts.get("cohort")):
                yield failed(
                    ledger.name,
                    f"entry {entry.number} opens a round of {short(job)} with owners of more than one group",
                )
                return
    for job in groups:
        yield Finding(
            ledger.name, f"the {rounds[job]} cohorts of {short(job)} are each of one of its groups"
        )


def _group_of_each(groups: Any) -> dict[str, int | None]:
    """The number of the group that each owner is in; None where it is in several. Anybody may have written them."""
    found: dict[str, int | None] = {}
    for number, group in enumerate(groups if isinstance(groups, list) else []):
        for owner in group if isinstance(group, list) else []:
            if isinstance(owner, str):
                found[owner] = number if found.get(owner, number) == number else None
    return found


def _is_of_one(group_of: Mapping[str, int | None], cohort: Any) -> bool:
    """Whether the cohort is within a group; it is as anybody may have written it."""
    if not isinstance(cohort, list) or not all(isinstance(owner, str) for owner in cohort):
        return False
    found = {group_of.get(owner) for owner in cohort}
    return len(found) <= 1 and None not in found
