"""The owner's own ledger: every decision, and everything that left. Durable before it happens.

    declined      this owner did not take part in a round, or gave it up: {job, round, phase,
                  manifest_digest, reason, why}. The reason is the true one; others may be told less
                  (cairn/protocol/reasons.py)
    refused       an invitation that is not the aggregator's or not for this owner: {why}. A run records
                  a thousand of what the aggregator has not signed, and at its end how many more there
                  were: {why, left_out}
    joined        {job, round, phase, manifest_digest, task, destination}
    spent         before the first step of private training: {job, round, phase, manifest_digest, task, loop, sample_rate,
                  steps, noise, clip, epsilon, epsilon_allowed, delta}. `loop` counts the loops of one training from
                  1, and epsilon is that of all such entries of the task up to this one
    sent          before the first byte of an update leaves: {job, round, phase, manifest_digest, task,
                  destination, payload_digest, tensors, bytes, encoding, examples, metrics, salt,
                  dropped_metrics, clipped, rule, weighting}, and of statistics the columns
    sent again    before the update that was recorded so is pushed again, after this node was started anew:
                  {job, round, phase, manifest_digest, payload_digest, destination}
    receipt       the aggregator's signed receipt: {manifest_digest, receipt}
    not accepted  the aggregator did not let this owner in, refused its update, or ended the round before
                  this owner was done: {manifest_digest, reason, why}
    released      a round's signed statement: {job, round, phase, manifest_digest, release_digest,
                  contributors, counted, reason or why where it was not, statement}
    no release    a round in which an update left has ended without one, as the aggregator says:
                  {manifest_digest, why, reason where the update was refused in it}
    reset         by `cairn reset`: the failures of a task that are forgiven: {task, failures}

Digests are in hexadecimal, signed messages in base64. `destination` is the fingerprint of the pinned
aggregator's certificate.
"""

import sqlite3
from collections.abc import Mapping

from cairn.errors import CairnError, InvalidMessage, UsageError
from cairn.ledger.chain import Ledger
from cairn.protocol.words import word_of
from cairn.runtime.clock import Clock
from cairn.runtime.failpoints import failpoint
from cairn.storage.database import StateDirectory
from cairn.v1 import round_pb2 as pb
from owner_node.invitation import Invited
from owner_node.records.history import LedgerHistory


class NotRecorded(CairnError):
    """An entry could not be made durable, so what it records must not happen."""

    reason = pb.REASON_TASK_FAILED


class OwnerLedger:
    """Every public method may be called from any thread."""

    def __init__(self, state: StateDirectory, clock: Clock) -> None:
        """Read the whole ledger. Raises UsageError where an entry was tampered with."""
        self._state = state
        self.past = LedgerHistory()
        number = 0
        try:
            self._ledger = Ledger(state.db, "ledger", clock)
            for entry in self._ledger.all():
                number = entry.number
                self.past.note(entry.kind, entry.facts)
        except InvalidMessage as error:
            raise UsageError(_tampered(state, str(error))) from None
        except (KeyError, ValueError, TypeError):
            raise UsageError(_tampered(state, f"entry {number} cannot be understood")) from None
        except sqlite3.Error as error:
            raise UsageError(_tampered(state, f"it cannot be read: {error}")) from None

    def record(self, kind: str, facts: Mapping[str, object]) -> None:
        """Add an entry and return when it is on the disk. Raises NotRecorded."""
        try:
            with self._state.transaction():
                self._ledger.append(kind, facts)
                failpoint("owner.ledger.before_commit")
        except (sqlite3.Error, OSError) as error:
            raise NotRecorded(
                f"the ledger in {self._state.path} cannot be written, so nothing is sent: {error}"
            ) from None
        with self._state.lock:
            self.past.note(kind, facts)


def round_facts(invited: Invited) -> dict[str, object]:
    """What every entry of a round begins with."""
    manifest = invited.manifest
    return {
        "job": manifest.job,
        "round": manifest.round,
        "phase": word_of(pb.Phase, manifest.phase),
        "manifest_digest": invited.digest.hex(),
    }


def _tampered(state: StateDirectory, what: str) -> str:
    return (
        f"the ledger in {state.path} was tampered with or is damaged: {what}. Put a good copy of the"
        " directory back; or keep it as it is and give this node a new directory, as `state` in its file"
    )
