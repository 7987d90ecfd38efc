"""What follows from an owner's ledger for the rounds to come. Pure: entries in, answers out.

It is the same after a restart as before, because the ledger's entries are all that it is told.
"""

import base64
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cairn.protocol.messages import parse
from cairn.protocol.words import PHASES
from cairn.v1 import round_pb2 as pb
from owner_node.invitation import Invited, JobHistory, LastRound
from owner_node.records.budgets import Budgets
from owner_node.records.kept_rounds import KeptRounds
from owner_node.records.privacy_spent import PrivacySpent
from owner_node.records.private_steps import PrivateRecord


@dataclass(frozen=True)
class Pushed:
    """What an update said of itself, and what the receipt for it must repeat."""

    payload_digest: bytes
    examples: int
    metrics: Mapping[str, float]
    salt: bytes


@dataclass(frozen=True)
class Unsettled:
    """A round in which an update left, and of whose end this owner has no proof yet."""

    job: str
    round: int


class LedgerHistory:
    """Is told every entry of the ledger in order, by `note`."""

    def __init__(self) -> None:
        self.unsettled: dict[bytes, Unsettled] = {}
        self.budgets = Budgets()
        self.kept_rounds = KeptRounds()
        self.privacy_spent = PrivacySpent()
        self.private = PrivateRecord()
        self._last: dict[str, LastRound] = {}
        self._release: dict[str, tuple[int, bytes]] = {}
        self._released: set[bytes] = set()
        self._sent: defaultdict[bytes, list[Pushed]] = defaultdict(list)
        self._receipts: dict[bytes, pb.Signed] = {}
        self._invited: set[bytes] = set()

    def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Take in an entry. Raises KeyError or ValueError where a fact is missing or wrong."""
        self.budgets.note(kind, facts)
        self.kept_rounds.note(kind, facts)
        self.privacy_spent.note(kind, facts)
        self.private.note(kind, facts)
        if kind in {"refused", "reset"}:
            return
        digest = bytes.fromhex(facts["manifest_digest"])
        match kind:
            case "declined":
                self._invited.add(digest)
            case "joined":
                self._invited.add(digest)
                self._last[facts["job"]] = LastRound(facts["round"], PHASES[facts["phase"]], digest)
            case "sent":
                self._note_sent(digest, facts)
            case "receipt":
                receipt = parse(pb.Signed, base64.b64decode(facts["receipt"]))
                self._receipts[digest] = receipt
            case "released":
                self._note_released(digest, facts)
            case "no release":
                self._settle(digest)

    def known(self, invited: Invited) -> JobHistory:
        """What the owner's policy must know before it decides."""
        job = invited.job
        is_trained = bool(self.sent(invited.digest))  # what was sent leaves again, without training
        return JobHistory(
            last=self._last.get(job.name),
            release=self._release.get(job.name),
            taken=self.budgets.taken(job.task, invited.manifest.phase, besides=invited.digest),
            failures=self.budgets.failures(job.task),
            told=self.privacy_spent.rho(job.task, besides=invited.digest),
            private=self.private.taken(job.task),
            next_private=() if is_trained else self.private.of_last_round(job.task, job.name),
        )

    def has_joined(self, invited: Invited) -> bool:
        last = self._last.get(invited.job.name)
        return last is not None and last.manifest_digest == invited.digest

    def is_released(self, manifest_digest: bytes) -> bool:
        return manifest_digest in self._released

    def was_invited(self, manifest_digest: bytes) -> bool:
        """Whether this owner is of the cohort, as a manifest said that the aggregator had signed."""
        return manifest_digest in self._invited

    def sent(self, manifest_digest: bytes) -> list[Pushed]:
        """Every update that left, or was about to leave, in this round, the latest last."""
        return self._sent.get(manifest_digest, [])

    def may_leave_again(self, manifest_digest: bytes) -> bool:
        """Whether an update left in this round, which may be open still: no later one of its job was joined."""
        about = self.unsettled.get(manifest_digest)
        last = self._last.get(about.job) if about is not None else None
        return last is not None and last.manifest_digest == manifest_digest

    def receipt(self, manifest_digest: bytes) -> pb.Signed | None:
        return self._receipts.get(manifest_digest)

    def _note_sent(self, digest: bytes, facts: Mapping[str, Any]) -> None:
        salt = bytes.fromhex(facts.get("salt", ""))  # entries of earlier versions have none
        self._sent[digest].append(
            Pushed(
                bytes.fromhex(facts["payload_digest"]), facts["examples"], facts["metrics"], salt
            )
        )
        if digest not in self._released:
            self.unsettled[digest] = Unsettled(facts["job"], facts["round"])

    def _note_released(self, digest: bytes, facts: Mapping[str, Any]) -> None:
        latest = self._release.get(facts["job"])
        if latest is None or facts["round"] >= latest[0]:
            self._release[facts["job"]] = facts["round"], bytes.fromhex(facts["release_digest"])
        self._released.add(digest)
        self._settle(digest)

    def _settle(self, digest: bytes) -> None:
        self.unsettled.pop(digest, None)
        self._sent.pop(digest, None)
        self._receipts.pop(digest, None)
