"""Checks what an aggregator stated against what it recorded. Pure: values in, findings out.

Whoever holds a release statement and a copy of the aggregator's ledger can hold the one against the
other, without asking anybody.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cairn.diagnostics.findings import Finding, failed, ok
from cairn.errors import InvalidMessage
from cairn.ledger.chain import GENESIS
from cairn.protocol.aggregation import aggregation_from_pb
from cairn.protocol.messages import digest_of
from cairn.protocol.privacy import PrivacyBudget
from cairn.protocol.statements import privacy_in_words, verified_statement
from cairn.protocol.words import word_of
from cairn.v1 import round_pb2 as pb
from cairn.verify.ledger import LedgerCopy, differing, short
from cairn.verify.privacy import budget_of


@dataclass(frozen=True)
class VerifiedStatement:
    """A statement whose signature is good, and the SHA-256 of the very bytes that were signed."""

    statement: pb.ReleaseStatement
    digest: bytes

    @classmethod
    def of(cls, key: Ed25519PublicKey, signed: pb.Signed) -> "VerifiedStatement":
        """Verify and check it. Raises InvalidMessage."""
        return cls(verified_statement(key, signed), digest_of(signed.body))


def check_recorded(name: str, stated: VerifiedStatement, ledger: LedgerCopy) -> Iterator[Finding]:
    """Whether a statement is in the aggregator's ledger, where it says, and as it says."""
    statement = stated.statement
    number = statement.ledger_number + 1
    if len(ledger.entries) < number:
        yield ledger.lacking(
            name,
            f"{ledger.name} ends at entry {len(ledger.entries)}, before entry {number}, which should"
            " record this release",
        )
        return
    complaint = (
        _misplaced(statement, ledger)
        or _misopened(statement, ledger)
        or _misbudgeted(statement, ledger)
        or _restated(stated, ledger)
    )
    if complaint:
        yield failed(name, complaint)
        return
    yield ok(name, f"{title(statement)} is entry {number} of {ledger.name}, after its opening")
    for entry in ledger.releases(
        statement.job, statement.round, word_of(pb.Phase, statement.phase)
    ):
        if entry.number != number:
            yield failed(
                name, f"entry {entry.number} of {ledger.name} is another release of the same round"
            )


def title(statement: pb.ReleaseStatement) -> str:
    evaluation = " (evaluation)" if statement.phase == pb.PHASE_EVALUATE else ""
    return f"{statement.job} round {statement.round}{evaluation}"


def facts_of(statement: pb.ReleaseStatement) -> dict[str, object]:
    """What every ledger has to say of the release."""
    return {
        "job": statement.job,
        "round": statement.round,
        "phase": word_of(pb.Phase, statement.phase),
        "manifest_digest": statement.manifest_digest.hex(),
        "release_digest": statement.release_digest.hex(),
        "contributors": statement.contributors,
    }


def _misplaced(statement: pb.ReleaseStatement, ledger: LedgerCopy) -> str | None:
    """What is wrong with the place of the statement in the ledger."""
    before = statement.ledger_number
    if (ledger.entries[before - 1].head if before else GENESIS) != statement.ledger_head:
        return f"entry {before} of {ledger.name} does not have the head that the statement names"
    entry = ledger.entries[before]
    if entry.kind != "release":
        return (
            f"entry {entry.number} of {ledger.name} is of the kind {short(entry.kind)}, not release"
        )
    privacy = {"epsilon": None, "delta": None, **privacy_in_words(statement)}
    expected = facts_of(statement) | {"base_digest": statement.base_digest.hex()} | privacy
    difference = differing(entry.facts, expected)
    return f"entry {entry.number} of {ledger.name} has {difference}" if difference else None


def _misbudgeted(statement: pb.ReleaseStatement, ledger: LedgerCopy) -> str | None:
    """What is wrong with the budget of the statement's job in the ledger; its figures are checked with the ledger."""
    budget = PrivacyBudget.of(aggregation_from_pb(statement.aggregation))
    try:
        recorded = budget_of(ledger, statement.job)
    except InvalidMessage as error:
        return f"the entry of {short(statement.job)}: {error}"
    if recorded == budget:
        return None
    return f"{ledger.name} has another privacy budget of {short(statement.job)} than the statement"


def _misopened(statement: pb.ReleaseStatement, ledger: LedgerCopy) -> str | None:
    """What is wrong with the opening of the statement's round."""
    entry = ledger.opening(statement.manifest_digest.hex())
    if entry is None or entry.number > statement.ledger_number:
        return f"no entry of {ledger.name} before the release opens the round of this manifest"
    cohort = entry.facts.get("cohort")
    excluded = {exclusion.owner for exclusion in statement.exclusions}
    if not isinstance(cohort, list) or not excluded <= {o for o in cohort if isinstance(o, str)}:
        return f"the statement excludes an owner that is not in the cohort of entry {entry.number}"
    if len(cohort) != statement.contributors + len(excluded):
        return (
            f"the statement counts {statement.contributors} and excludes {len(excluded)} owners;"
            f" the cohort of entry {entry.number} of {ledger.name} has {len(cohort)}"
        )
    drawn = digest_of(statement.draw_seed).hex() if statement.draw_seed else None
    if entry.facts.get("draw_commitment") != drawn:
        return f"the statement is by another draw than entry {entry.number} of {ledger.name} commits to"
    return None


def _restated(stated: VerifiedStatement, ledger: LedgerCopy) -> str | None:
    """What is wrong where the entry of the statement is good: it may record other words."""
    entry = ledger.entries[stated.statement.ledger_number]
    recorded = entry.facts.get("statement_digest")
    if recorded == stated.digest.hex():
        return None
    return (
        f"entry {entry.number} of {ledger.name} records another statement of the same release: one with"
        f" the SHA-256 {short(recorded)}, not {stated.digest.hex()}"
    )
