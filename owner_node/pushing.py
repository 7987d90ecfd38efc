"""Decides what of a trained round leaves this site, records it, and pushes it to the aggregator."""

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import structlog

from cairn.encoding import Layout, encoding_word
from cairn.errors import Conflict, TooMuch, Unavailable, UpdateRefused
from cairn.failpoint import failpoint
from cairn.messages import reason_word
from cairn.patience import patiently
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from cairn.values import ANY_FINITE, check_values
from owner_node.aggregator_client import AggregatorClient
from owner_node.clip import clip
from owner_node.encoding import Change, Residual, encode, length
from owner_node.ledger import OwnerLedger, round_facts
from owner_node.past import Pushed
from owner_node.policy import Declined, Invited
from owner_node.receipts import Receipts
from owner_node.residual import Residuals, Stream
from owner_node.training_process import Trained

log = structlog.get_logger()


@dataclass(frozen=True)
class LeavingRules:
    """What may leave of a task: the metrics by name, and how far an update may be from its base."""

    metrics: frozenset[str] = frozenset()
    clip: float | None = None


@dataclass(frozen=True)
class Leaving:
    """An update as it leaves. `change` is what its payload says, where that is in deltas."""

    payload: memoryview
    pushed: Pushed
    dropped_metrics: tuple[str, ...]
    clipped: bool
    change: Change | None


def needs_base(encoding: "pb.Encoding", rules: LeavingRules) -> bool:
    """Whether what leaves is made of the update and its base, which must then outlive the training."""
    return encoding != pb.ENCODING_WHOLE or rules.clip is not None


def prepared(
    invited: Invited,
    base: memoryview,
    trained: Trained,
    rules: LeavingRules,
    residuals: Residuals,
) -> Leaving:
    """Clip the update, encode it and drop what may not leave.

    A whole update is clipped in place and leaves from where it is. The base is looked at only where
    `needs_base` says so. Raises Declined for a value that is NaN
    or infinite, and for a change that its encoding cannot say.
    """
    stream, payload, digest = _stream(invited), trained.payload, b""
    clipped, change = False, None
    if invited.manifest.trains:
        try:
            if stream.layout.encoding == pb.ENCODING_WHOLE:
                check_values(stream.layout.schema, payload, ANY_FINITE)
                if rules.clip is not None:
                    clipped = clip(stream.layout.schema, base, payload, rules.clip)
            else:
                change = _change(stream.layout, base, trained, rules, residuals.of(stream))
                clipped, payload = change.factor < 1, residuals.wire(stream.layout)
                encode(stream.layout, change, payload)
        except UpdateRefused as error:
            raise Declined(f"after training the {error}", error.reason) from None
        digest = stream.layout.digest(payload)
    metrics = {name: value for name, value in trained.metrics.items() if name in rules.metrics}
    dropped = tuple(sorted(trained.metrics.keys() - metrics.keys()))
    return Leaving(payload, Pushed(digest, trained.examples, metrics), dropped, clipped, change)


def _stream(invited: Invited) -> Stream:
    job = invited.job
    return Stream(job.task, job.name, Layout(job.schema, invited.manifest.encoding))


def _change(
    layout: Layout, base: memoryview, trained: Trained, rules: LeavingRules, residual: Residual
) -> Change:
    change = Change(base, trained.payload, residual)
    if rules.clip is None:
        return change
    # A length that is none is left as it is: its change is refused, and by name, when it is encoded.
    far = length(layout, change)
    return replace(change, factor=rules.clip / far) if rules.clip < far < math.inf else change


class Pushing:
    """Pushes one update at a time. `destination` says the pinned aggregator's fingerprint."""

    def __init__(
        self,
        aggregator: AggregatorClient,
        ledger: OwnerLedger,
        rules: Mapping[str, LeavingRules],
        destination: Callable[[], str],
        stopping: threading.Event,
    ) -> None:
        self._aggregator = aggregator
        self._ledger = ledger
        self._receipts = Receipts(aggregator, ledger)
        self._rules = rules
        self._destination = destination
        self._stopping = stopping
        self._residuals = Residuals()

    def needs_base(self, invited: Invited) -> bool:
        """Whether the base must still be there when the update is pushed."""
        return needs_base(invited.manifest.encoding, self._rules[invited.job.task])

    def push(self, invited: Invited, base: memoryview, trained: Trained, deadline: float) -> None:
        """Push what may leave, by this moment of the monotonic clock, and keep the receipt.

        Raises Declined, or NotRecorded where the ledger cannot be written: then nothing has left.
        """
        rules = self._rules[invited.job.task]
        leaving = prepared(invited, base, trained, rules, self._residuals)
        ids = {"job": invited.job.name, "round": invited.manifest.round}
        if leaving.dropped_metrics:
            log.warning(
                "metrics that this owner's file does not list are dropped",
                **ids,
                metrics=list(leaving.dropped_metrics),
            )
        self._ledger.record("sent", self._facts(invited, leaving))
        failpoint("owner.sent.recorded")
        stream = _stream(invited)
        if leaving.change is not None:
            self._residuals.drop(stream)
        try:
            receipt = self._submitted(invited, leaving, deadline)
        except (UpdateRefused, Conflict) as error:
            if leaving.change is not None:
                self._residuals.refused(stream, leaving.change)
            log.error("update refused", **ids, reason=str(error))
            self._ledger.record(
                "not accepted",
                {
                    "manifest_digest": invited.digest.hex(),
                    "reason": reason_word(error.reason),
                    "why": str(error),
                },
            )
            return
        log.info(
            "update accepted",
            **ids,
            bytes=len(leaving.payload),
            digest=leaving.pushed.payload_digest.hex(),
            clipped=leaving.clipped,
        )
        failpoint("owner.push.accepted")
        self._receipts.keep(invited.digest, receipt)
        failpoint("owner.receipt.recorded")
        if leaving.change is not None:
            self._residuals.accepted(stream, leaving.change, leaving.payload)

    def _submitted(self, invited: Invited, leaving: Leaving, deadline: float) -> pb.Signed:
        header = aggregator_pb2.UpdateHeader(
            manifest_digest=invited.digest,
            base_digest=invited.manifest.base_digest,
            examples=leaving.pushed.examples,
            metrics=leaving.pushed.metrics,
            total_bytes=len(leaving.payload),
        )
        tried = False

        def push() -> pb.Signed:
            nonlocal tried
            if tried:  # the update may have arrived, and only its answer been lost
                receipt = self._aggregator.receipt(invited.digest, [leaving.pushed])
                if receipt is not None:
                    return receipt
                self._aggregator.join(invited.digest)
            tried = True
            try:
                seconds = until(deadline)
                return self._aggregator.submit(header, leaving.payload, leaving.pushed, seconds)
            except UpdateRefused as error:
                if error.reason == pb.REASON_CORRUPT_UPDATE:
                    raise Unavailable(str(error)) from None
                raise
            except TooMuch as error:  # a push that broke off is still held; its watchdog ends it
                raise Unavailable(str(error)) from None

        return patiently(push, "the aggregator", until(deadline), self._stopping)

    def _facts(self, invited: Invited, leaving: Leaving) -> dict[str, object]:
        trains = invited.manifest.trains
        return {
            **round_facts(invited),
            "task": invited.job.task,
            "destination": self._destination(),
            "payload_digest": leaving.pushed.payload_digest.hex(),
            "tensors": len(invited.job.schema.tensors) if trains else 0,
            "bytes": len(leaving.payload),
            "encoding": encoding_word(invited.manifest.encoding),
            "examples": leaving.pushed.examples,
            "metrics": dict(leaving.pushed.metrics),
            "dropped_metrics": list(leaving.dropped_metrics),
            "clipped": leaving.clipped,
            "rule": "mean",
            "weighting": _weighting_word(invited.manifest.weighting),
        }


def until(deadline: float) -> float:
    """The seconds left to a moment of the monotonic clock, but never none at all."""
    return max(1.0, deadline - time.monotonic())


def _weighting_word(weighting: "pb.Weighting") -> str:
    return pb.Weighting.Name(weighting).removeprefix("WEIGHTING_").lower()
