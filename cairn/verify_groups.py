"""Checks that the rounds of a job keep to its groups, as far as a ledger tells. Pure: values in, findings out."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from cairn.verify import Copy, Finding, failed, short


def check_groups(ledger: Copy) -> Iterator[Finding]:
    """Whether each round of a job with groups was opened with owners of one of them.

    A release counts owners of its round's cohort and no others (see `check_recorded`), so it counts owners of one
    group as well. Nothing is said of jobs without groups.
    """
    groups: dict[str, Any] = {}
    rounds = Counter[str]()
    for entry in ledger.entries:
        facts = entry.facts
        job = str(facts.get("job"))
        if entry.kind == "job" and "groups" in facts:
            groups[job] = facts["groups"]
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


def _is_of_one(groups: Any, cohort: Any) -> bool:
    """Whether the cohort is within a group; both are as anybody may have written them."""
    lists = isinstance(groups, list) and isinstance(cohort, list)
    return lists and any(
        isinstance(group, list) and all(owner in group for owner in cohort) for group in groups
    )
