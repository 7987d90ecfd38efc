"""A round while it is open: the pure state machine with its lock, its updates and its end.

Updates live here and nowhere else, in memory, until the round is sealed; then they are let go. What an
owner's receipt says of its update stays a while longer, for the owner to ask for.
"""

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog

from aggregator_node.averaging import average_metrics
from aggregator_node.closing import Accepted, Closing, Joined
from aggregator_node.ordered_sum import OrderedSum
from aggregator_node.push import Push, Terms, check_header
from aggregator_node.pushes import Pushes
from aggregator_node.round import Ending, Round, Seat
from cairn.clock import Clock
from cairn.errors import Conflict, NotFound, UpdateRefused, WrongState
from cairn.messages import digest_of, reason_word
from cairn.statements import commitment_of
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb

log = structlog.get_logger()
T = TypeVar("T")

ENDED = frozenset({aggregator_pb2.ROUND_STATE_RELEASED, aggregator_pb2.ROUND_STATE_ABORTED})


class LiveRound:
    """One open round. Every public method may be called from any thread."""

    def __init__(
        self,
        digest: bytes,
        terms: Terms,
        clock: Clock,
        sign_receipt: Callable[[aggregator_pb2.Receipt], pb.Signed],
    ) -> None:
        """Open the round now."""
        now, manifest = clock.monotonic(), terms.manifest
        remaining = (manifest.deadline_unix_ms - clock.unix_ms()) / 1000
        self.digest = digest
        self.manifest = manifest
        self.state = aggregator_pb2.ROUND_STATE_OPEN
        self.reason: pb.Reason = pb.REASON_UNSPECIFIED
        self.exclusions: tuple[tuple[str, pb.Reason], ...] = ()
        self._terms = terms
        self._clock = clock
        self._sign_receipt = sign_receipt
        self._round = Round.open(
            manifest.cohort, manifest.floor, manifest.lease_seconds, now + remaining, now
        )
        self._sum = OrderedSum(terms.job.schema, manifest.cohort)
        self._summing = threading.Lock()
        self._pushes = Pushes()
        self._accepted: dict[str, Accepted] = {}
        self._reports: dict[str, tuple[dict[str, float], int]] = {}  # metrics and weight, by owner
        self._abort_reason: pb.Reason = pb.REASON_UNSPECIFIED
        self._changed = threading.Condition()

    def join(self, owner: str) -> Joined:
        """Take the owner in, or renew its lease."""
        with self._while_open():
            now = self._clock.monotonic()
            self._round.join(owner, now)
            return Joined(owner in self._accepted, max(0.0, self._round.deadline - now))

    def decline(self, owner: str, reason: "pb.Reason") -> None:
        """The owner does not take part."""
        with self._while_open():
            self._round.decline(owner, reason)
        log.info("declined", **self._ids, owner=owner, reason=reason_word(reason))
        self._skip(owner)

    def receipt(self, owner: str) -> pb.Signed:
        """The owner's receipt, also after the round ended. Raises NotFound before."""
        with self._changed:
            self._round.seat(owner)
            if owner not in self._accepted:
                raise NotFound("no update of yours was accepted in this round")
            return self._accepted[owner].receipt

    @contextmanager
    def push(
        self, owner: str, header: aggregator_pb2.UpdateHeader, cancel: Callable[[], object]
    ) -> Iterator[Push]:
        """Let the owner push inside; one push of an owner at a time."""
        with self._changed:
            self._check_may_push(owner)
        self._refusing(owner, lambda: check_header(header, self._terms))
        push = Push(header, self._terms, cancel, self._clock.monotonic())
        with self._changed:
            self._check_may_push(owner)
            self._pushes.begin(owner, push)
            self._changed.notify_all()
        try:
            yield push
        finally:
            with self._changed:
                self._pushes.end(owner, push)

    def heard(self, owner: str) -> None:
        """A chunk arrived, which renews the owner's lease."""
        with self._changed:
            if self.is_open:
                self._round.join(owner, self._clock.monotonic())

    def commit(self, owner: str, push: Push, commit: aggregator_pb2.UpdateCommit) -> pb.Signed:
        """Accept the pushed update and return its receipt; the same update again, the same receipt.

        Raises UpdateRefused for a bad update, Conflict where another was accepted, WrongState where
        the round has ended.
        """
        digest = self._refusing(owner, lambda: push.finish(commit))
        header_digest = _digest_of(push.header)
        receipt = self._sign_receipt(
            aggregator_pb2.Receipt(
                manifest_digest=self.digest,
                owner=owner,
                payload_digest=digest,
                examples=push.header.examples,
                metrics=push.header.metrics,
                salt=secrets.token_bytes(32),
            )
        )
        weight = self._terms.weight(push.header.examples)
        with self._summing:
            with self._changed:
                # Complete: the seal, which ends what is under way, must not take its answer away.
                self._pushes.end(owner, push)
                before = self._accepted.get(owner)
                if before is not None:
                    if (before.header_digest, before.payload_digest) != (header_digest, digest):
                        raise Conflict("another update of this owner was accepted in this round")
                    return before.receipt
                self._check_open()
                self._round.accept(owner)
                self._accepted[owner] = Accepted(header_digest, digest, receipt)
                self._reports[owner] = (dict(push.header.metrics), weight)
            if self.manifest.trains:
                self._sum.add(owner, push.payload, weight)
        log.info("accepted", **self._ids, owner=owner)
        self._wake()
        return receipt

    def abort(self, reason: "pb.Reason") -> None:
        """End the round without a release. Raises WrongState where it is sealed or released."""
        with self._changed:
            if self.state == aggregator_pb2.ROUND_STATE_ABORTED or self._abort_reason:
                return
            self._check_open()
            self._abort_reason = reason
            self._changed.notify_all()

    def await_seal(self) -> Closing | None:
        """Wait until the round ends; returns what is to be released, or None for an aborted round."""
        with self._changed:
            while (ending := self._ending()) is None:
                self._pushes.end_idle(self._clock.monotonic())
                wait = self._next_event() - self._clock.monotonic()
                self._changed.wait(max(0.0, wait))
            self._pushes.cancel_all()
            sealed = ending is Ending.SEAL
            self.exclusions = tuple(self._round.exclusions(self._clock.monotonic()))
            if sealed:
                self.state = aggregator_pb2.ROUND_STATE_SEALED
                self._changed.notify_all()
            else:
                self._abort_reason = self._abort_reason or pb.REASON_BELOW_FLOOR
                self.reason = self._abort_reason
        return self._close() if sealed else None

    def end(self, state: "aggregator_pb2.RoundState", reason: "pb.Reason") -> None:
        """Let the watchers know how the round ended."""
        with self._changed:
            self.state, self.reason = state, reason
            self._sum = OrderedSum(self._terms.job.schema, ())
            self._reports.clear()
            self._changed.notify_all()

    def wait_for_change(
        self, seen: "aggregator_pb2.RoundState", timeout_seconds: float
    ) -> "aggregator_pb2.RoundState":
        """Wait until the state is another than `seen`, at most so long; returns the state."""
        with self._changed:
            self._changed.wait_for(lambda: self.state != seen, timeout_seconds)
            return self.state

    def wait_for_end(self, timeout_seconds: float) -> None:
        """Wait until the round's end is recorded, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: self.state in ENDED, timeout_seconds)

    @property
    def is_open(self) -> bool:
        return self.state == aggregator_pb2.ROUND_STATE_OPEN and not self._abort_reason

    @property
    def _ids(self) -> dict[str, object]:
        return {"job": self.manifest.job, "round": self.manifest.round}

    def _close(self) -> Closing:
        with self._summing:
            owners = tuple(sorted(self._reports))
            payload = self._sum.result(len(owners)) if self.manifest.trains else bytearray()
        return Closing(
            payload=payload,
            contributors=owners,
            commitments=tuple(sorted(commitment_of(self._accepted[o].receipt) for o in owners)),
            metrics=average_metrics([self._reports[owner] for owner in owners]),
            exclusions=self.exclusions,
        )

    def _ending(self) -> Ending | None:
        if self._abort_reason:
            return Ending.ABORT
        return self._round.settle(self._clock.monotonic())

    def _next_event(self) -> float:
        return min([self._round.next_event(), *self._pushes.next_idle()])

    def _refusing(self, owner: str, check: Callable[[], T]) -> T:
        """Run a check of an update; where no retry can mend it, the owner is out of the round."""
        try:
            return check()
        except UpdateRefused as error:
            if error.reason != pb.REASON_CORRUPT_UPDATE:
                with self._changed:
                    # An owner whose update was accepted before stays in: its share is in the sum.
                    out = self.is_open and self._round.seat(owner) in {Seat.JOINED, Seat.LOST}
                    if out:
                        self._round.refuse(owner, error.reason)
                if out:
                    self._skip(owner)
            raise

    def _skip(self, owner: str) -> None:
        with self._summing:
            self._sum.skip(owner)
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def _while_open(self) -> Iterator[None]:
        with self._changed:
            self._check_open()
            yield
            self._changed.notify_all()

    def _check_may_push(self, owner: str) -> None:
        seat = self._round.seat(owner)
        self._pushes.check_free(owner)
        if owner not in self._accepted:
            self._check_open()
            if seat is not Seat.JOINED:
                raise WrongState(f"{owner} is {seat} in this round; join it before you push")

    def _check_open(self) -> None:
        if not self.is_open:
            raise WrongState("the round has ended", pb.REASON_ROUND_ENDED)


def _digest_of(header: aggregator_pb2.UpdateHeader) -> bytes:
    """What makes two headers those of one update: all but how far the owner knows the ledger."""
    same = aggregator_pb2.UpdateHeader()
    same.CopyFrom(header)
    same.ClearField("seen_head")
    return digest_of(same.SerializeToString(deterministic=True))
