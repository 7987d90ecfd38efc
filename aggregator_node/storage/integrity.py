"""Holds the aggregator's database against its ledger when it starts: neither says more than the other.

The ledger's chain cannot be changed without being noticed, so what it says is what happened. A row that
was deleted or changed would let a round be opened again, or an average be released beside one that it
must not stand beside.
"""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256

from aggregator_node.storage.rows import JobRow, RoundRow
from cairn.errors import InvalidMessage
from cairn.ledger.chain import Entry
from cairn.protocol.messages import parse
from cairn.protocol.words import reason_word
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb

_STATES = {
    "open": aggregator_pb2.ROUND_STATE_OPEN,
    "release": aggregator_pb2.ROUND_STATE_RELEASED,
    "abort": aggregator_pb2.ROUND_STATE_ABORTED,
}


class StateCheck:
    """Is told every entry of the ledger in order, and then compares what is left to compare."""

    def __init__(
        self,
        jobs: Iterable[JobRow],
        rounds: Iterable[RoundRow],
        optimizer_states: Mapping[bytes, bytes],
    ) -> None:
        """Raise InvalidMessage for a row that holds no message."""
        self._jobs = {sha256(row.spec).hexdigest(): row for row in jobs}
        self._rounds = {row.manifest_digest.hex(): row for row in rounds}
        self._optimizer_states = {
            digest.hex(): state.hex() for digest, state in optimizer_states.items()
        }
        self._heads = self._promised_heads()
        self._states: dict[str, int] = {}
        self._number = 0

    def follow(self, entry: Entry) -> None:
        """Take in the next entry. Raises InvalidMessage where it is not what the rows say."""
        self._number = entry.number
        if self._heads.pop(entry.number, None) not in {None, entry.head}:
            raise InvalidMessage(f"entry {entry.number} is not the one that was signed for")
        facts = entry.facts
        if entry.kind == "job":
            row = self._jobs.pop(facts["job_digest"], None)
            if row is None or (row.name, row.coordinator) != (facts["job"], facts["coordinator"]):
                raise InvalidMessage(f"the job of entry {entry.number} is not in the database")
            return
        digest = facts["manifest_digest"]
        self._states[digest] = _STATES[entry.kind]
        if entry.kind == "release":
            self._check_release(entry, digest)
        elif entry.kind == "abort":
            aborted = self._rounds.get(digest)
            if aborted is None or reason_word(aborted.reason) != facts["reason"]:
                raise InvalidMessage(f"the end of entry {entry.number} is not in the database")

    def finish(self) -> None:
        """Raise InvalidMessage where a row is not in the ledger, or not as the ledger has it."""
        if self._heads:
            raise InvalidMessage(
                f"it ends with entry {self._number}, but messages were signed that name entry"
                f" {max(self._heads)}: entries were cut off"
            )
        if self._jobs:
            raise InvalidMessage("the database has a job that the ledger does not have")
        if self._optimizer_states:
            raise InvalidMessage(
                "the database has an optimizer's state that the ledger does not have"
            )
        states = {digest: row.state for digest, row in self._rounds.items()}
        if states != self._states:
            raise InvalidMessage("the rounds of the database are not those of the ledger")

    def _check_release(self, entry: Entry, digest: str) -> None:
        row = self._rounds.get(digest)
        if row is None or row.statement is None:
            raise InvalidMessage(f"the release of entry {entry.number} is not in the database")
        body = parse(pb.Signed, row.statement).body
        if sha256(body).hexdigest() != entry.facts["statement_digest"]:
            raise InvalidMessage(
                f"the statement of entry {entry.number} is another than was signed"
            )
        stated = [(e.owner, e.reason) for e in parse(pb.ReleaseStatement, body).exclusions]
        if list(row.exclusions) != stated:
            raise InvalidMessage(f"the owners left out in entry {entry.number} are not as stated")

        if self._optimizer_states.pop(digest, None) != entry.facts.get("optimizer_digest"):
            raise InvalidMessage(f"the optimizer's state of entry {entry.number} is another")

    def _promised_heads(self) -> dict[int, bytes | None]:
        """The heads of the ledger that manifests and statements name, by the number of entries."""
        heads: dict[int, bytes | None] = {}
        for row in self._rounds.values():
            for number, head in _heads_in(row):
                heads[number] = head
                heads.setdefault(number + 1, None)  # its own entry follows
        heads.pop(0, None)
        return heads


def _heads_in(row: RoundRow) -> Iterator[tuple[int, bytes]]:
    """What the row's signed messages say of the ledger. Raises InvalidMessage where they are another round's."""
    body = parse(pb.Signed, row.manifest).body
    manifest = parse(pb.RoundManifest, body)
    yield manifest.ledger_number, manifest.ledger_head
    named = (manifest.job, manifest.round, manifest.phase, sha256(body).digest())
    if named != (row.job, row.number, row.phase, row.manifest_digest):
        raise InvalidMessage(f"the row of round {row.number} of {row.job} has another's manifest")
    if row.statement is not None:
        statement = parse(pb.ReleaseStatement, parse(pb.Signed, row.statement).body)
        yield statement.ledger_number, statement.ledger_head
        stated = (statement.manifest_digest, statement.release_digest)
        if stated != (row.manifest_digest, row.release_digest):
            raise InvalidMessage(
                f"the row of round {row.number} of {row.job} has another's statement"
            )


def check_state(
    entries: Iterable[Entry],
    jobs: Iterable[JobRow],
    rounds: Iterable[RoundRow],
    optimizer_states: Mapping[bytes, bytes],
) -> None:
    """Raise InvalidMessage where ledger and rows do not belong together.

    `optimizer_states` are the digests of the optimizers' states, by the digests of their rounds' manifests.
    """
    try:
        check = StateCheck(jobs, rounds, optimizer_states)
        for entry in entries:
            check.follow(entry)
        check.finish()
    except (KeyError, TypeError, ValueError):
        raise InvalidMessage("an entry or a row cannot be understood") from None
