"""Checks an owner's ledger: what left, what the aggregator answered, and whether it counted. Pure.

The kinds of entries that are looked at, with digests in hex and signed messages in base64:

    declined, and not accepted: manifest_digest, reason
    joined     job, round, manifest_digest
    sent       manifest_digest, payload_digest, examples, metrics, salt
    spent      task, sample_rate, noise, steps, delta, epsilon, epsilon_allowed
    receipt    manifest_digest, receipt
    released   manifest_digest, job, round, phase, release_digest, contributors, counted, reason where
               the owner was excluded, statement
    reset      task, failures

The owner's own reason is the true one; a statement may say NOT_COUNTED of it (cairn/protocol/reasons.py).
"""

import base64
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cairn.diagnostics.findings import Finding, failed, ok
from cairn.errors import InvalidMessage
from cairn.ledger.chain import Entry
from cairn.protocol.aggregation import aggregation_from_pb
from cairn.protocol.messages import parse
from cairn.protocol.privacy import PrivacyBudget, agree
from cairn.protocol.statements import commitment_of, verified_receipt
from cairn.protocol.words import reason_of_word, reason_word
from cairn.v1 import round_pb2 as pb
from cairn.verify.ledger import LedgerCopy, attempted, differing, short
from cairn.verify.record_privacy import PrivateSpending
from cairn.verify.sent import SentUpdates
from cairn.verify.statement import VerifiedStatement, check_recorded, facts_of, title

_MOST_COMPLAINTS = 1000  # then it is no ledger of an owner, and the rest is not looked at
_NEVER_LEFT = (
    "the statement does not exclude this owner, although no update of its left for that round: somebody"
    " else's may have been counted in its name"
)


class OwnerRecord:
    """What an owner's ledger shows, under the aggregator's key, read entry by entry."""

    def __init__(self, ledger: LedgerCopy, key: Ed25519PublicKey) -> None:
        """Check every entry; `findings` tells what was found."""
        self._name = ledger.name
        self._key = key
        self._owner = ""
        self._rounds: dict[str, int] = {}
        self._sent = SentUpdates()
        self.private = PrivateSpending(ledger.name)
        self._commitments: dict[str, bytes] = {}  # manifest digest → that of the receipt for it
        self._reasons: dict[str, str] = {}  # manifest digest → why the owner was not counted
        self._met: set[str] = set()  # manifest digests of the rounds whose cohort has the owner
        self._statements: list[tuple[int, VerifiedStatement]] = []
        self._resets: list[str] = []
        self._told: dict[str, object] = {}  # manifest digest → the reason that a release gave
        self._counted = Counter[str]()  # job → the releases that counted the owner
        self.findings: list[Finding] = []
        checks: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "joined": self._joined,
            "sent": self._sent.add,
            "receipt": self._receipt,
            "released": self._released,
            "declined": self._left_out,
            "not accepted": self._left_out,
            "reset": self._reset,
            "spent": self.private.add,
        }
        for entry in ledger.entries:
            if entry.kind in checks and len(self.findings) < _MOST_COMPLAINTS:
                self._check(entry, checks[entry.kind])
        self._check_names()
        if not self.findings:
            self.findings.append(
                ok(
                    self._name,
                    f"{self._sent.count} updates left; {len(self._commitments)} receipts and"
                    f" {len(self._statements)} release statements are signed by the aggregator and agree"
                    " with what left",
                )
            )
            self.findings += [ok(self._name, reset) for reset in self._resets]

    def check_statements_in(self, aggregators: LedgerCopy) -> Iterator[Finding]:
        """Whether every statement the owner was given is in the aggregator's ledger."""
        for number, stated in self._statements:
            yield from check_recorded(f"{self._name}, entry {number}", stated, aggregators)

    def note_cohorts(self, aggregators: LedgerCopy) -> None:
        """Learn of rounds that the owner may never have been invited to, before `check_counted`."""
        for entry in aggregators.entries:
            cohort = entry.facts.get("cohort")
            if entry.kind == "open" and isinstance(cohort, list) and self._owner in cohort:
                self._met.add(str(entry.facts.get("manifest_digest")))

    def check_counted(self, name: str, statement: pb.ReleaseStatement) -> Finding:
        """Whether a statement counts the update that the owner holds a receipt for."""
        commitment = self._commitments.get(statement.manifest_digest.hex())
        if commitment is not None and commitment in statement.commitments:
            return ok(name, f"{title(statement)}: counted")
        excluded = {e.owner: reason_word(e.reason) for e in statement.exclusions}
        manifest_digest = statement.manifest_digest.hex()
        reason = self._reasons.get(manifest_digest) or excluded.get(self._owner)
        if commitment is not None:
            return failed(
                name,
                f"{title(statement)}: not counted ({reason or 'no reason is given'}), although the"
                " owner holds a receipt for its update",
            )
        if manifest_digest in self._met and self._is_misnamed(statement):
            return failed(name, f"{title(statement)}: {_NEVER_LEFT}")
        return ok(
            name,
            f"{title(statement)}: not counted ({reason or 'the owner holds no receipt for it'})",
        )

    def _check_names(self) -> None:
        """Whether no statement that the owner was given speaks of an update that never left."""
        for number, stated in self._statements:
            if self._is_misnamed(stated.statement):
                what = f"{title(stated.statement)}: {_NEVER_LEFT}"
                self.findings.append(failed(f"{self._name}, entry {number}", what))

    def _is_misnamed(self, statement: pb.ReleaseStatement) -> bool:
        """Whether a statement may count, as this owner's, an update that the owner never sent."""
        digest = statement.manifest_digest.hex()
        if digest in self._commitments or digest in self._sent:
            return False
        excluded = {e.owner: reason_word(e.reason) for e in statement.exclusions}
        if self._owner:
            return self._owner not in excluded
        if digest in self._told:  # no receipt tells the owner's name, but the node knew it
            return self._told[digest] not in excluded.values()
        return not excluded

    def _check(self, entry: Entry, check: Callable[[Mapping[str, Any]], None]) -> None:
        _, complaints = attempted(
            f"{self._name}, entry {entry.number}",
            lambda: check({**entry.facts, "entry": entry.number}),
        )
        self.findings.extend(complaints)

    def _left_out(self, facts: Mapping[str, Any]) -> None:
        word = str(facts.get("reason"))
        self._met.add(str(facts.get("manifest_digest")))
        if reason_of_word(word):
            self._reasons.setdefault(str(facts.get("manifest_digest")), word)

    def _reset(self, facts: Mapping[str, Any]) -> None:
        task, failures = facts.get("task"), facts.get("failures")
        if not isinstance(task, str) or type(failures) is not int or failures < 0:
            raise InvalidMessage("it does not say how many failures of which task are forgiven")
        self._resets.append(
            f"entry {facts['entry']}: {failures} failures of {short(task)} are forgiven"
        )

    def _joined(self, facts: Mapping[str, Any]) -> None:
        job, number = facts.get("job"), facts.get("round")
        if not isinstance(job, str) or not isinstance(number, int):
            raise InvalidMessage("it does not say which round of which job was joined")
        self._met.add(str(facts.get("manifest_digest")))
        if number < self._rounds.get(job, 0):
            raise InvalidMessage(
                f"it joins round {number} of {short(job)} after round {self._rounds[job]}: rounds never go"
                " backward"
            )
        self._rounds[job] = number

    def _receipt(self, facts: Mapping[str, Any]) -> None:
        signed = _signed(facts, "receipt")
        receipt = verified_receipt(self._key, signed)
        digest = receipt.manifest_digest.hex()
        if facts.get("manifest_digest") != digest:
            raise InvalidMessage("the receipt is for another manifest than the entry says")
        if self._owner not in {"", receipt.owner}:
            raise InvalidMessage(f"the receipt is one of {receipt.owner}, not of {self._owner}")
        self._sent.check(receipt)
        self._owner = receipt.owner
        self._commitments[digest] = commitment_of(signed)

    def _released(self, facts: Mapping[str, Any]) -> None:
        stated = VerifiedStatement.of(self._key, _signed(facts, "statement"))
        statement = stated.statement
        self._statements.append((facts["entry"], stated))
        self._met.add(statement.manifest_digest.hex())
        self._told[statement.manifest_digest.hex()] = facts.get("reason")
        difference = differing(facts, facts_of(statement))
        if difference:
            raise InvalidMessage(f"it has {difference}, which the signed statement has")
        if "reason" in facts:
            self._left_out(facts)
        commitment = self._commitments.get(statement.manifest_digest.hex())
        listed = commitment in statement.commitments
        excluded = any(exclusion.owner == self._owner for exclusion in statement.exclusions)
        if facts.get("counted") is True and not listed:
            raise InvalidMessage(
                "it says counted, but the statement does not list the owner's receipt"
                if commitment
                else "it says counted, but the ledger has no receipt for that round"
            )
        if facts.get("counted") is False and commitment is not None and (listed or not excluded):
            raise InvalidMessage(
                "it says not counted, but "
                + (
                    "the statement lists the owner's receipt"
                    if listed
                    else "the owner holds a receipt and the statement does not exclude it"
                )
            )
        if not isinstance(facts.get("counted"), bool):
            raise InvalidMessage("it does not say whether the owner's update was counted")
        if listed:
            self._check_privacy(statement)

    def _check_privacy(self, statement: pb.ReleaseStatement) -> None:
        """Whether a statement says of a private job as much as was told of this owner alone."""
        budget = PrivacyBudget.of(aggregation_from_pb(statement.aggregation))
        if budget is None:
            return
        self._counted[statement.job] += 1
        least = budget.spent_by(self._counted[statement.job])
        if statement.privacy.epsilon < least and not agree(statement.privacy.epsilon, least):
            raise InvalidMessage(
                f"the statement has epsilon {statement.privacy.epsilon:.6g}, but the"
                f" {self._counted[statement.job]} releases that counted this owner tell {least:.6g}"
            )


def _signed(facts: Mapping[str, Any], key: str) -> pb.Signed:
    try:
        serialised = base64.b64decode(facts[key], validate=True)
    except (KeyError, ValueError, TypeError):
        raise InvalidMessage(f"its {key} is not in base64") from None
    return parse(pb.Signed, serialised)
