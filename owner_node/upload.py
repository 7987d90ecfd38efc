"""Records what leaves this site, keeps it until it is settled, and pushes it to the aggregator."""

import threading
from collections.abc import Callable, Mapping, Sequence

from cairn.errors import Conflict, LimitExceeded, Unavailable, UpdateRefused
from cairn.protocol.statements import aggregation_in_words
from cairn.protocol.words import reason_word, word_of
from cairn.runtime.failpoints import failpoint
from cairn.transport.retry import retry_while_unavailable
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from owner_node import events
from owner_node.aggregator_client import AggregatorClient
from owner_node.download import until
from owner_node.events import Observer
from owner_node.invitation import Declined, Invited
from owner_node.receipts import Receipts
from owner_node.records.ledger import OwnerLedger, round_facts
from owner_node.training.supervisor import Trained
from owner_node.updates.error_feedback import ErrorFeedback
from owner_node.updates.prepare import (
    DisclosureRules,
    OutgoingUpdate,
    needs_base,
    prepare_update,
    rules_beside,
    stream_of,
)
from owner_node.updates.spool import UpdateSpool


class Uploader:
    """Pushes one update at a time. `destination` says the pinned aggregator's fingerprint."""

    def __init__(
        self,
        aggregator: AggregatorClient,
        ledger: OwnerLedger,
        spool: UpdateSpool,
        receipts: Receipts,
        rules: Mapping[str, DisclosureRules],
        destination: Callable[[], str],
        stopping: threading.Event,
        tell: Observer,
    ) -> None:
        self._aggregator = aggregator
        self._ledger = ledger
        self._spool = spool
        self._receipts = receipts
        self._rules = rules
        self._destination = destination
        self._stopping = stopping
        self._tell = tell
        self._feedback = ErrorFeedback()

    def needs_base(self, invited: Invited) -> bool:
        """Whether the base must still be there when the update is pushed."""
        return needs_base(invited, self._rules[invited.job.task])

    def push(
        self,
        invited: Invited,
        base: memoryview,
        trained: Trained,
        deadline: float,
        may_leave: Callable[[], None],
    ) -> None:
        """Push what may leave, by this moment of the monotonic clock, and keep the receipt.

        `may_leave` is called once all is prepared and before anything is recorded as sent; it raises where
        nothing may leave. Raises Declined, or NotRecorded where the ledger cannot be written: then nothing has left.
        """
        before = None
        if invited.job.statistics is None:
            before = self._ledger.past.budgets.reported(invited.job.task, invited.manifest.phase)
        rules = rules_beside(invited, self._rules[invited.job.task], trained.metrics, before)
        with self._spool.writer(invited.digest) as writer:
            outgoing = prepare_update(invited, base, trained, rules, self._feedback, writer.write)
            self._tell_of_dropped(invited, outgoing.dropped_metrics)
            writer.wait_until_placed()
            may_leave()
            self._ledger.record("sent", self._facts(invited, outgoing))
            failpoint("owner.sent.recorded")
            self._push(invited, outgoing, deadline, writer.wait_until_durable)

    def _tell_of_dropped(self, invited: Invited, dropped: Sequence[str]) -> None:
        if invited.manifest.aggregation.is_private:  # the job drops all, whatever is listed
            return
        listed = self._rules[invited.job.task].metrics
        if unlisted := [name for name in dropped if name not in listed]:
            self._tell(events.UnlistedMetricsDropped(*invited.ids, unlisted))
        if new := [name for name in dropped if name in listed]:
            self._tell(events.NewMetricsDropped(*invited.ids, new))

    def push_again(self, invited: Invited, deadline: float) -> bool:
        """Push what was recorded as sent in this round before, as it was; returns whether something was.

        Raises Declined where it is not there any more: to train again could bring another update, and
        two of one round must never leave.
        """
        outgoing = self._sent_before(invited)
        if outgoing is None:
            return False
        self._tell(events.PushedAgain(*invited.ids))
        again = {**round_facts(invited), "payload_digest": outgoing.pushed.payload_digest.hex()}
        self._ledger.record("sent again", again | {"destination": self._destination()})
        self._push(invited, outgoing, deadline, lambda: None)
        return True

    def _sent_before(self, invited: Invited) -> OutgoingUpdate | None:
        sent = self._ledger.past.sent(invited.digest)
        if not sent:
            return None
        pushed, payload = sent[-1], memoryview(b"")
        if invited.manifest.trains:
            layout = stream_of(invited).layout
            kept = self._spool.find(invited.digest, layout, pushed.payload_digest)
            if kept is None:
                raise Declined(
                    "the update that this owner recorded as sent is not on its disk any more, and no other"
                    " may leave in its place",
                    pb.REASON_UPDATE_LOST,
                )
            payload = kept
        return OutgoingUpdate(payload, pushed, dropped_metrics=(), clipped=False, change=None)

    def _push(
        self,
        invited: Invited,
        outgoing: OutgoingUpdate,
        deadline: float,
        before_commit: Callable[[], object],
    ) -> None:
        stream = stream_of(invited)
        if stream.layout.encoding != pb.ENCODING_WHOLE:
            self._feedback.drop(stream)
        try:
            receipt = self._submitted(invited, outgoing, deadline, before_commit)
        except (UpdateRefused, Conflict) as error:
            if outgoing.change is not None:
                self._feedback.refused(stream, outgoing.change)
            self._tell(events.UpdateRefused(*invited.ids, error))
            self._ledger.record(
                "not accepted",
                {
                    "manifest_digest": invited.digest.hex(),
                    "reason": reason_word(error.reason),
                    "why": str(error),
                },
            )
            self._spool.remove(invited.digest)
            return
        nbytes, digest = len(outgoing.payload), outgoing.pushed.payload_digest
        self._tell(events.UpdateAccepted(*invited.ids, nbytes, digest, outgoing.clipped))
        failpoint("owner.push.accepted")
        self._receipts.keep(invited.digest, receipt)
        failpoint("owner.receipt.recorded")
        if outgoing.change is not None:
            self._feedback.accepted(stream, outgoing.change, outgoing.payload)

    def _submitted(
        self,
        invited: Invited,
        outgoing: OutgoingUpdate,
        deadline: float,
        before_commit: Callable[[], object],
    ) -> pb.Signed:
        header = aggregator_pb2.UpdateHeader(
            manifest_digest=invited.digest,
            base_digest=invited.manifest.base_digest,
            examples=outgoing.pushed.examples,
            metrics=outgoing.pushed.metrics,
            total_bytes=len(outgoing.payload),
            salt=outgoing.pushed.salt,
        )
        tried = False

        def push() -> pb.Signed:
            nonlocal tried
            # An aggregator that cannot be reached does not say that the round is over.
            until(deadline)
            if tried:  # the update may have arrived, and only its answer been lost
                receipt = self._aggregator.receipt(invited.digest, [outgoing.pushed])
                if receipt is not None:
                    return receipt
                self._aggregator.join(invited.digest)
            tried = True
            try:
                seconds = until(deadline)
                return self._aggregator.submit(
                    header, outgoing.payload, outgoing.pushed, seconds, before_commit
                )
            except UpdateRefused as error:
                if error.reason == pb.REASON_CORRUPT_UPDATE:
                    raise Unavailable(str(error)) from None
                raise
            except (
                LimitExceeded
            ) as error:  # a push that broke off is still held; its watchdog ends it
                raise Unavailable(str(error)) from None

        return retry_while_unavailable(push, "the aggregator", until(deadline), self._stopping)

    def _facts(self, invited: Invited, outgoing: OutgoingUpdate) -> dict[str, object]:
        trains, statistics = invited.manifest.trains, invited.job.statistics
        counted = {} if statistics is None else {"columns": [c.name for c in statistics.columns]}
        return {
            **round_facts(invited),
            "task": invited.job.task,
            "destination": self._destination(),
            "payload_digest": outgoing.pushed.payload_digest.hex(),
            "tensors": len(invited.job.schema.tensors) if trains else 0,
            "bytes": len(outgoing.payload),
            "encoding": word_of(pb.Encoding, invited.manifest.encoding),
            "examples": outgoing.pushed.examples,
            "metrics": dict(outgoing.pushed.metrics),
            "salt": outgoing.pushed.salt.hex(),
            "dropped_metrics": list(outgoing.dropped_metrics),
            "clipped": outgoing.clipped,
            **aggregation_in_words(invited.manifest.aggregation),
            "weighting": word_of(pb.Weighting, invited.manifest.weighting),
            **counted,
        }
