"""Checks a ledger: its chain, its signed head, its groups, and another copy of it. Pure: values in, findings out."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cairn.diagnostics.findings import Finding, Grade, failed, ok
from cairn.errors import InvalidMessage
from cairn.ledger.chain import GENESIS, Entry, check_chain
from cairn.protocol.statements import verified_head
from cairn.runtime.foreign_files import Incomplete
from cairn.v1 import round_pb2 as pb

T = TypeVar("T")

_LONGEST = 80  # characters of a value that are shown


@dataclass(frozen=True)
class LedgerCopy:
    """The entries of a ledger, as far as their chain holds, and the name of the file they are from.

    `goes_on` says that the ledger may have had more entries than this copy when what is checked against it was
    made: the copy of a run that has not ended, or one that somebody made earlier.
    """

    name: str
    entries: tuple[Entry, ...]
    goes_on: bool = False

    @property
    def head(self) -> bytes:
        return self.entries[-1].head if self.entries else GENESIS

    def lacking(self, where: str, what: str) -> Finding:
        """The finding for something that only entries after this copy's last could show."""
        return Finding(Grade.BEHIND if self.goes_on else Grade.FAILED, where, what)

    def opening(self, manifest_digest: str) -> Entry | None:
        """The entry that opens the round of this manifest; the first of several."""
        return self._openings.get(manifest_digest)

    def release_with(self, facts: Mapping[str, object], after: int = 0) -> Entry | None:
        """The first release, after so many entries, of which these facts are so."""
        for entry in self.entries[after:]:
            if entry.kind == "release" and differing(entry.facts, facts) is None:
                return entry
        return None

    def releases(self, job: str, number: int, phase: str) -> list[Entry]:
        """The entries that release this round."""
        return self._releases.get((job, number, phase), [])

    @cached_property
    def _openings(self) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for entry in self.entries:
            if entry.kind == "open":
                digest = entry.facts.get("manifest_digest")
                if isinstance(digest, str):
                    found.setdefault(digest, entry)
        return found

    @cached_property
    def _releases(self) -> dict[tuple[str, int, str], list[Entry]]:
        found: dict[tuple[str, int, str], list[Entry]] = {}
        for entry in self.entries:
            if entry.kind == "release":
                facts = entry.facts
                job, number, phase = (facts.get(key) for key in ("job", "round", "phase"))
                if isinstance(job, str) and type(number) is int and isinstance(phase, str):
                    found.setdefault((job, number, phase), []).append(entry)
        return found


def attempted(
    where: str, check: Callable[[], T], *, goes_on: bool = False
) -> tuple[T | None, list[Finding]]:
    """What `check` returns; or None, and its complaint. What goes on may lack its end, or not be there yet."""
    try:
        return check(), []
    except InvalidMessage as error:
        behind = goes_on and isinstance(error, Incomplete)
        return None, [Finding(Grade.BEHIND if behind else Grade.FAILED, where, str(error))]


def check_ledger(
    name: str, entries: Iterable[Entry], *, goes_on: bool = False
) -> tuple[LedgerCopy, Finding]:
    """Check a chain from its beginning; the copy ends before the first entry that is not good."""
    kept: list[Entry] = []

    def keep() -> None:
        try:
            for entry in check_chain(entries):
                _ = entry.facts
                kept.append(entry)
        except RecursionError:
            raise InvalidMessage(f"entry {len(kept) + 1} is no JSON") from None

    _, complaints = attempted(name, keep, goes_on=goes_on)
    behind = all(complaint.grade is Grade.BEHIND for complaint in complaints)
    copy = LedgerCopy(name, tuple(kept), goes_on and behind)
    if complaints:
        return copy, complaints[0]
    what = f"the chain of {len(kept)} entries holds; its head is {copy.head.hex()}"
    return copy, ok(name, what)


def check_head(
    name: str, key: Ed25519PublicKey, signed: pb.Signed, ledger: LedgerCopy
) -> Iterator[Finding]:
    """Whether the aggregator signed that its ledger goes exactly as far as this copy."""
    head, complaints = attempted(name, lambda: verified_head(key, signed))
    yield from complaints
    if head is None:
        return
    there = len(ledger.entries)
    if head.number > there:  # the head is written after the entries
        yield failed(
            name,
            f"the aggregator signed for {head.number} entries, {ledger.name} has {there}: entry"
            f" {there + 1} is missing",
        )
    elif head.head != (ledger.entries[head.number - 1].head if head.number else GENESIS):
        yield failed(
            name, f"entry {head.number} of {ledger.name} is not the one that was signed for"
        )
    elif head.number < there:
        yield ledger.lacking(
            name,
            f"the aggregator signed for {head.number} entries, {ledger.name} has {there}: entry"
            f" {head.number + 1} is too many",
        )
    else:
        yield ok(name, f"the aggregator signed for these {head.number} entries")


def check_same_ledger(one: LedgerCopy, other: LedgerCopy) -> Finding:
    """Whether two copies are of one ledger: the longer goes on where the shorter ends."""
    for mine, theirs in zip(one.entries, other.entries, strict=False):
        if mine.head != theirs.head:
            return failed(one.name, f"entry {mine.number} is another one than in {other.name}")
    shared = min(len(one.entries), len(other.entries))
    return ok(one.name, f"its first {shared} entries are those of {other.name}")


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
        yield ok(
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


def differing(facts: Mapping[str, Any], expected: Mapping[str, object]) -> str | None:
    """The first of the expected facts that is not so, in words."""
    for key, value in expected.items():
        if facts.get(key) != value or isinstance(facts.get(key), bool) != isinstance(value, bool):
            return f"{key} {short(facts.get(key))} instead of {short(value)}"
    return None


def short(value: object) -> str:
    """A value that anybody may have written, fit for a terminal."""
    try:
        text = repr(dict(sorted(value.items())) if isinstance(value, dict) else value)
    except RecursionError:
        text = "something nested too deeply"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
