"""Finds out how a round ended, and whether this owner's update was counted in its release.

Only a statement that the aggregator signed counts. What a coordinator says is a reason to ask the
aggregator about that round, where an update of ours left in it, and nothing else.
"""

import base64

import structlog

from cairn.clock import Clock
from cairn.errors import CairnError, InvalidMessage, NotFound, Unavailable, WrongState
from cairn.failpoint import failpoint
from cairn.messages import reason_word
from cairn.statements import commitment_of
from cairn.v1 import coordinator_pb2
from cairn.v1 import round_pb2 as pb
from owner_node.aggregator_client import AggregatorClient
from owner_node.kept_updates import KeptUpdates
from owner_node.ledger import OwnerLedger
from owner_node.past import PHASE_WORDS
from owner_node.receipts import Receipts

log = structlog.get_logger()

ASK_EVERY_SECONDS = 3.0  # at least, between two questions about one round
_LONGEST_PAUSE_SECONDS = 300.0  # between two while the aggregator cannot be reached


class Outcomes:
    """Judges the ends of rounds, for one owner of one federation."""

    def __init__(
        self,
        aggregator: AggregatorClient,
        ledger: OwnerLedger,
        kept: KeptUpdates,
        federation: str,
        owner: str,
        clock: Clock,
    ) -> None:
        self._aggregator = aggregator
        self._ledger = ledger
        self._kept = kept
        self._receipts = Receipts(aggregator, ledger)
        self._federation = federation
        self._owner = owner
        self._clock = clock
        self._asked: dict[bytes, float] = {}  # when it was last asked about a round
        # Whether there was a question too soon after another, one whose answer did not come, or one from
        # before this node was started.
        self._put_off = bool(ledger.past.unsettled)
        self._pause = ASK_EVERY_SECONDS

    @property
    def ask_in(self) -> float | None:
        """In how many seconds what was put off is to be asked; None where nothing was."""
        return self._pause if self._put_off else None

    def is_proved(self, outcome: coordinator_pb2.Outcome) -> bool:
        """Whether the aggregator has signed that this round has ended."""
        if not outcome.HasField("statement"):
            log.warning("the coordinator gave up a round", reason=_word(outcome.reason))
            return False
        try:
            self._statement(outcome.statement, outcome.manifest_digest)
        except InvalidMessage as error:
            log.error(
                "the coordinator sent a statement that is not the aggregator's", why=str(error)
            )
            return False
        return True

    def take_in(self, outcome: coordinator_pb2.Outcome) -> None:
        """Record how this round ended.

        Where an update of ours left, the aggregator itself is asked: its answer shows how far its ledger
        is. The coordinator's copy of the statement does where it gives none.
        """
        digest = outcome.manifest_digest
        try:
            copy = self._statement(outcome.statement, digest)
        except InvalidMessage:
            copy = None
        if digest in self._ledger.past.unsettled:
            if copy is not None or self._may_ask(digest):
                self._ask(digest)
            else:
                self._put_off = True
        if copy is None:
            return
        try:
            self._record(outcome.statement, copy)
        except Unavailable as error:  # whether our update was counted is asked again
            log.warning("the receipt of a round was not fetched", reason=str(error))
            self._put_off = True

    def settle(self) -> None:
        """Ask the aggregator itself how the rounds ended of which this owner was not told."""
        self._put_off = False
        for digest in list(self._ledger.past.unsettled):
            if not self._may_ask(digest):
                self._put_off = True
            elif not self._ask(digest):
                return

    def _may_ask(self, digest: bytes) -> bool:
        """Whether enough time has passed: what a coordinator says must not flood the aggregator."""
        asked = self._asked.get(digest)
        return asked is None or self._clock.monotonic() - asked >= ASK_EVERY_SECONDS

    def _ask(self, digest: bytes) -> bool:
        """Ask how a round ended, and record it; returns whether the aggregator could be reached."""
        unsettled = self._ledger.past.unsettled
        about = unsettled[digest]
        ids = {"job": about.job, "round": about.round}
        self._asked = {d: at for d, at in self._asked.items() if d in unsettled}
        self._asked[digest] = self._clock.monotonic()
        try:
            signed = self._aggregator.released(digest)
            self._record(signed, self._statement(signed, digest))
        except WrongState:
            pass  # it is open
        except NotFound as error:
            if error.reason == pb.REASON_ROUND_ENDED:
                self._note_no_release(digest, str(error))
        except InvalidMessage as error:
            log.error("the aggregator's answer on a round is not good", **ids, reason=str(error))
        except CairnError as error:
            log.warning("the statement of a round was not fetched", **ids, reason=str(error))
            if isinstance(error, Unavailable):
                self._put_off = True
                self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
                return False
        self._pause = ASK_EVERY_SECONDS
        return True

    def _note_no_release(self, digest: bytes, why: str) -> None:
        """Record the end, and whether our update was refused in it: that answer may have been lost."""
        facts = {"manifest_digest": digest.hex(), "why": why}
        if self._ledger.past.receipt(digest) is None:
            try:
                refused = self._aggregator.refusal(digest)
            except Unavailable:
                self._put_off = True
                return
            facts |= {"reason": reason_word(refused)} if refused else {}
        self._ledger.record("no release", facts)
        self._kept.tidy()

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
        ids = {"job": statement.job, "round": statement.round}
        failpoint("owner.outcome.before_record")
        self._ledger.record(
            "released",
            {
                **ids,
                "phase": PHASE_WORDS[statement.phase],
                "manifest_digest": digest.hex(),
                "release_digest": statement.release_digest.hex(),
                "contributors": statement.contributors,
                "counted": not missing,
                **missing,
                "statement": base64.b64encode(signed.SerializeToString()).decode(),
            },
        )
        self._kept.tidy()
        log.info(
            "released",
            **ids,
            contributors=statement.contributors,
            counted=next(iter(missing.values()), "yes"),
        )

    def _why_not_counted(self, statement: pb.ReleaseStatement) -> dict[str, str]:
        """Why this owner's update is not in the release; empty where it provably is."""
        receipt = self._receipts.find(statement.manifest_digest)
        if receipt is None:
            excluded = {e.owner: reason_word(e.reason) for e in statement.exclusions}
            if self._owner in excluded:
                return {"reason": excluded[self._owner]}
            return self._why_no_receipt(statement)
        if commitment_of(receipt) not in statement.commitments:
            log.error(
                "THE AGGREGATOR ACCEPTED AN UPDATE AND LEFT IT OUT OF ITS RELEASE",
                job=statement.job,
                round=statement.round,
                manifest=statement.manifest_digest.hex(),
            )
            return {"why": "the receipt's commitment is missing"}
        return {}

    def _why_no_receipt(self, statement: pb.ReleaseStatement) -> dict[str, str]:
        """What it means that a statement does not exclude this owner, which holds no receipt."""
        digest = statement.manifest_digest
        if self._ledger.past.sent(digest):
            return {"why": "this owner holds no receipt"}
        if not self._is_of_the_cohort(digest):
            return {"why": "this owner was not invited"}
        log.error(
            "AN UPDATE MAY HAVE BEEN COUNTED IN THIS OWNER'S NAME THAT IT NEVER SENT",
            job=statement.job,
            round=statement.round,
            manifest=digest.hex(),
        )
        return {"why": "the statement does not exclude this owner, which sent no update"}

    def _is_of_the_cohort(self, digest: bytes) -> bool:
        if self._ledger.past.was_invited(digest):
            return True
        try:
            self._aggregator.released(digest)  # it tells the cohort alone
        except CairnError:
            return False
        return True


def _word(reason: int) -> str:
    known = reason in pb.Reason.values()
    return reason_word(reason) if known else f"unknown reason {reason}"
