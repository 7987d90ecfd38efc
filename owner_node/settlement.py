"""Finds out how a round ended, and whether this owner's update was counted in its release.

Only a statement that the aggregator signed counts. From an update on, the aggregator itself is asked again
and again until the end of its round is known, whatever the coordinator says or withholds: only the
aggregator's answer brings the head of its ledger, by which an older state that is put back is found out.
"""

import base64
import threading
from dataclasses import dataclass

from cairn.errors import CairnError, InvalidMessage, NotFound, Unavailable, WrongState
from cairn.protocol.statements import commitment_of
from cairn.protocol.words import reason_word, word_of
from cairn.runtime.clock import Clock
from cairn.runtime.failpoints import failpoint
from cairn.v1 import coordinator_pb2
from cairn.v1 import round_pb2 as pb
from owner_node import events
from owner_node.aggregator_client import AggregatorClient
from owner_node.events import Observer
from owner_node.invitation import Invited
from owner_node.receipts import Receipts
from owner_node.records.ledger import NotRecorded, OwnerLedger
from owner_node.updates.spool import UpdateSpool

ASK_EVERY_SECONDS = 3.0  # between two questions about one round
# Between two while the aggregator cannot be reached, or refuses to answer.
_LONGEST_PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class _Asked:
    """When the aggregator was last asked about a round, how long not to ask again, and what it said."""

    at: float
    pause: float
    is_open: bool = False


class Settlement:
    """Judges the ends of rounds, for one owner of one federation.

    Every public method may be called from any thread.
    """

    def __init__(
        self,
        aggregator: AggregatorClient,
        ledger: OwnerLedger,
        spool: UpdateSpool,
        receipts: Receipts,
        federation: str,
        owner: str,
        clock: Clock,
        tell: Observer,
    ) -> None:
        self._aggregator = aggregator
        self._ledger = ledger
        self._spool = spool
        self._receipts = receipts
        self._federation = federation
        self._owner = owner
        self._clock = clock
        self._tell = tell
        self._lock = threading.RLock()  # over all that follows, and from a question to its record
        self._asked: dict[bytes, _Asked] = {}
        # Recorded from a coordinator's copy: the aggregator itself has not answered yet.
        self._without_head: set[bytes] = set()
        self._pause = ASK_EVERY_SECONDS
        self._is_reached = True

    @property
    def ask_in(self) -> float:
        """In how many seconds to `settle` again."""
        return self._pause

    @property
    def awaits_an_end(self) -> bool:
        """Whether a round of ours is open, as the aggregator said, which could be reached the last time."""
        with self._lock:
            unsettled = self._ledger.past.unsettled
            is_open = any(asked.is_open for d, asked in self._asked.items() if d in unsettled)
            return is_open and self._is_reached

    def is_proved(self, outcome: coordinator_pb2.Outcome) -> bool:
        """Whether the aggregator has signed that this round has ended."""
        if not outcome.HasField("statement"):
            self._tell(events.GivenUp(outcome.reason))
            return False
        try:
            self._statement(outcome.statement, outcome.manifest_digest)
        except InvalidMessage as error:
            self._tell(events.StatementForged(error))
            return False
        return True

    def take_in(self, outcome: coordinator_pb2.Outcome) -> None:
        """Record how this round ended.

        Where an update of ours left, the aggregator itself is asked: its answer shows how far its ledger
        is. Where it gives none, the coordinator's copy of the statement is recorded, and it is asked on.
        """
        digest = outcome.manifest_digest
        try:
            copy = self._statement(outcome.statement, digest)
        except InvalidMessage:
            copy = None
        with self._lock:
            is_ours = digest in self._ledger.past.unsettled
            if is_ours and (copy is not None or self._may_ask(digest)):
                self._ask(digest)
            if copy is None or self._ledger.past.is_released(digest):
                return
            if is_ours:
                self._without_head.add(digest)
            try:
                self._record(outcome.statement, copy)
            except Unavailable as error:  # whether our update was counted is asked again
                self._tell(events.CountNotKnown(error))

    def settle(self, under_way: bytes = b"") -> None:
        """Ask the aggregator how the rounds ended of whose end it has given this owner no proof.

        The round that is under way is left out: its own calls find out.
        """
        with self._lock:
            for digest in [*self._ledger.past.unsettled, *self._without_head]:
                if digest != under_way and self._may_ask(digest) and not self._ask(digest):
                    return

    def settle_job(self, invited: Invited) -> None:
        """Ask the aggregator how the earlier rounds of this job ended, now that a later one is open.

        It is asked at once, however lately it was: once for each round that this owner joins. Raises Unavailable
        where it cannot be reached.
        """
        with self._lock:
            for digest, about in [*self._ledger.past.unsettled.items()]:
                is_earlier = about.job == invited.job.name and digest != invited.digest
                if is_earlier and not self._ask(digest):
                    raise Unavailable("the aggregator cannot be asked how the round before ended")

    def _may_ask(self, digest: bytes) -> bool:
        """Whether enough time has passed: neither we nor a coordinator must flood the aggregator."""
        asked = self._asked.get(digest)
        return asked is None or self._clock.monotonic() - asked.at >= asked.pause

    def _ask(self, digest: bytes) -> bool:
        """Ask how a round ended, and record it; returns whether the aggregator could be reached."""
        asked = self._asked.get(digest)
        longer = min(2 * asked.pause, _LONGEST_PAUSE_SECONDS) if asked else ASK_EVERY_SECONDS
        try:
            is_open = self._is_open(digest)
        except Unavailable as error:
            self._note_asked(digest, ASK_EVERY_SECONDS)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
            self._is_reached = False
            self._tell(events.AggregatorNotAsked(error))
            return False
        except NotRecorded:
            self._note_asked(digest, longer)
            raise
        except CairnError as error:
            self._note_asked(digest, longer)
            about = self._ledger.past.unsettled.get(digest)
            self._tell(events.EndNotTold(about, digest, error))
        else:
            self._note_asked(digest, ASK_EVERY_SECONDS, is_open=is_open)
        self._pause, self._is_reached = ASK_EVERY_SECONDS, True
        return True

    def _is_open(self, digest: bytes) -> bool:
        """Ask about a round; record its end and return False, or return whether it is still open."""
        try:
            signed = self._aggregator.released(digest)
        except NotFound as error:
            if error.reason != pb.REASON_ROUND_ENDED:
                raise
            if digest in self._without_head:
                raise WrongState(
                    "it does not know a release that it has signed: its state was replaced",
                    pb.REASON_ROLLED_BACK,
                ) from None
            self._note_no_release(digest, str(error))
            return False
        if signed is None:
            return True
        self._record(signed, self._statement(signed, digest))
        self._without_head.discard(digest)
        return False

    def _note_asked(self, digest: bytes, pause: float, *, is_open: bool = False) -> None:
        mine = {*self._ledger.past.unsettled, *self._without_head}
        self._asked = {d: asked for d, asked in self._asked.items() if d in mine}
        self._asked[digest] = _Asked(self._clock.monotonic(), pause, is_open)

    def _note_no_release(self, digest: bytes, why: str) -> None:
        """Record the end, and whether our update was refused in it: that answer may have been lost.

        Raises Unavailable, and records nothing, where the aggregator cannot be asked for that.
        """
        facts = {"manifest_digest": digest.hex(), "why": why}
        if self._ledger.past.receipt(digest) is None:
            refused = self._aggregator.refusal(digest)
            facts |= {"reason": reason_word(refused)} if refused else {}
        self._ledger.record("no release", facts)
        self._spool.tidy()

    def _statement(self, signed: pb.Signed, manifest_digest: bytes) -> pb.ReleaseStatement:
        statement = self._aggregator.statement(signed, manifest_digest)
        if statement.federation != self._federation:
            raise InvalidMessage("the release statement is another federation's")
        return statement

    def _record(self, signed: pb.Signed, statement: pb.ReleaseStatement) -> None:
        digest = statement.manifest_digest
        if self._ledger.past.is_released(digest):
            return
        missing = self._why_not_counted(statement)
        failpoint("owner.outcome.before_record")
        self._ledger.record(
            "released",
            {
                "job": statement.job,
                "round": statement.round,
                "phase": word_of(pb.Phase, statement.phase),
                "manifest_digest": digest.hex(),
                "release_digest": statement.release_digest.hex(),
                "contributors": statement.contributors,
                "counted": not missing,
                **missing,
                "statement": base64.b64encode(signed.SerializeToString()).decode(),
            },
        )
        self._spool.tidy()
        why_not = next(iter(missing.values()), "")
        self._tell(events.Released(statement.job, statement.round, statement.contributors, why_not))

    def _why_not_counted(self, statement: pb.ReleaseStatement) -> dict[str, str]:
        """Why this owner's update is not in the release; empty where it provably is."""
        receipt = self._receipts.find(statement.manifest_digest)
        if receipt is None:
            excluded = {e.owner: reason_word(e.reason) for e in statement.exclusions}
            if self._owner in excluded:
                return {"reason": excluded[self._owner]}
            return self._why_no_receipt(statement)
        if commitment_of(receipt) not in statement.commitments:
            manifest = statement.manifest_digest
            self._tell(events.AcceptedAndLeftOut(statement.job, statement.round, manifest))
            return {"why": "the receipt's commitment is missing"}
        return {}

    def _why_no_receipt(self, statement: pb.ReleaseStatement) -> dict[str, str]:
        """What it means that a statement does not exclude this owner, which holds no receipt."""
        digest = statement.manifest_digest
        if self._ledger.past.sent(digest):
            return {"why": "this owner holds no receipt"}
        if not self._is_of_the_cohort(digest):
            return {"why": "this owner was not invited"}
        self._tell(events.CountedUnsent(statement.job, statement.round, digest))
        return {"why": "the statement does not exclude this owner, which sent no update"}

    def _is_of_the_cohort(self, digest: bytes) -> bool:
        if self._ledger.past.was_invited(digest):
            return True
        try:
            self._aggregator.released(digest)  # it tells the cohort alone
        except CairnError:
            return False
        return True
