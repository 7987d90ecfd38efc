"""A round while it is open: the pure state machine with its lock, its updates and its end.

Updates live here and nowhere else, in memory, until the round is sealed; then they are let go.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import structlog

from aggregator_node.averaging import average_metrics
from aggregator_node.ordered_sum import OrderedSum
from aggregator_node.push import Push, check_header
from aggregator_node.round import Ending, Round, Seat
from cairn.clock import Clock
from cairn.errors import Conflict, NotFound, TooMuch, UpdateRefused, WrongState
from cairn.messages import Manifest, digest_of, reason_word
from cairn.tensors import Schema
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb

log = structlog.get_logger()
T = TypeVar("T")

ENDED = frozenset({aggregator_pb2.ROUND_STATE_RELEASED, aggregator_pb2.ROUND_STATE_ABORTED})
IDLE_SECONDS = 30  # a push that brings nothing for so long is ended


@dataclass(frozen=True)
class Accepted:
    """What is kept of an accepted update beside its share in the sum."""

    header_digest: bytes
    payload_digest: bytes
    receipt: pb.Signed


@dataclass(frozen=True)
class Joined:
    """The answer to a join: whether there is anything left to do, and for how long at the most."""

    update_accepted: bool
    open_seconds: float


@dataclass(frozen=True)
class Closing:
    """What a sealed round hands to its release. `payload` is empty for an evaluation."""

    payload: bytearray
    contributors: int
    metrics: dict[str, float]
    exclusions: tuple[tuple[str, "pb.Reason"], ...]


class LiveRound:
    """One open round. Every public method may be called from any thread."""

    def __init__(
        self,
        digest: bytes,
        manifest: Manifest,
        schema: Schema,
        clock: Clock,
        sign_receipt: Callable[[aggregator_pb2.Receipt], pb.Signed],
    ) -> None:
        """Open the round now."""
        now = clock.monotonic()
        remaining = (manifest.deadline_unix_ms - clock.unix_ms()) / 1000
        self.digest = digest
        self.manifest = manifest
        self.state = aggregator_pb2.ROUND_STATE_OPEN
        self.reason: pb.Reason = pb.REASON_UNSPECIFIED
        self.exclusions: tuple[tuple[str, pb.Reason], ...] = ()
        self._schema = schema
        self._clock = clock
        self._sign_receipt = sign_receipt
        self._round = Round.open(
            manifest.cohort, manifest.floor, manifest.lease_seconds, now + remaining, now
        )
        self._sum = OrderedSum(schema, manifest.cohort)
        self._summing = threading.Lock()
        self._pushes: dict[str, Push] = {}
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
        self._refusing(owner, lambda: check_header(header, self.manifest, self._schema))
        push = Push(header, self._schema, cancel, self._clock.monotonic())
        with self._changed:
            self._check_may_push(owner)
            self._pushes[owner] = push
            self._changed.notify_all()
        try:
            yield push
        finally:
            with self._changed:
                if self._pushes.get(owner) is push:
                    del self._pushes[owner]

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
        digest = self._refusing(owner, lambda: push.finish(commit, trains=self.manifest.trains))
        header_digest = digest_of(push.header.SerializeToString(deterministic=True))
        receipt = self._sign_receipt(
            aggregator_pb2.Receipt(
                manifest_digest=self.digest,
                owner=owner,
                payload_digest=digest,
                examples=push.header.examples,
            )
        )
        with self._summing:
            with self._changed:
                # Complete: the seal, which ends what is under way, must not take its answer away.
                self._pushes.pop(owner, None)
                before = self._accepted.get(owner)
                if before is not None:
                    if (before.header_digest, before.payload_digest) != (header_digest, digest):
                        raise Conflict("another update of this owner was accepted in this round")
                    return before.receipt
                self._check_open()
                self._round.accept(owner)
                self._accepted[owner] = Accepted(header_digest, digest, receipt)
                self._reports[owner] = (dict(push.header.metrics), self._weight(push.header))
            if self.manifest.trains:
                self._sum.add(owner, push.payload, self._weight(push.header))
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
                self._end_idle_pushes()
                wait = self._next_event() - self._clock.monotonic()
                self._changed.wait(max(0.0, wait))
            for push in self._pushes.values():
                push.cancel()
            sealed = ending is Ending.SEAL
            self.exclusions = tuple(self._round.exclusions())
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
            self._sum = OrderedSum(self._schema, ())
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
            reports = [report for _, report in sorted(self._reports.items())]
            payload = self._sum.result(len(reports)) if self.manifest.trains else bytearray()
        return Closing(payload, len(reports), average_metrics(reports), self.exclusions)

    def _weight(self, header: aggregator_pb2.UpdateHeader) -> int:
        return header.examples if self.manifest.weighting == pb.WEIGHTING_EXAMPLES else 1

    def _ending(self) -> Ending | None:
        if self._abort_reason:
            return Ending.ABORT
        return self._round.settle(self._clock.monotonic())

    def _next_event(self) -> float:
        idle = [push.heard_at + IDLE_SECONDS for push in self._pushes.values()]
        return min([self._round.next_event(), *idle])

    def _end_idle_pushes(self) -> None:
        now = self._clock.monotonic()
        for owner, push in self._pushes.items():
            if now >= push.heard_at + IDLE_SECONDS:
                log.warning("idle push ended", **self._ids, owner=owner)
                push.heard_at = now
                push.cancel()

    def _refusing(self, owner: str, check: Callable[[], T]) -> T:
        """Run a check of an update; where no retry can mend it, the owner is out of the round."""
        try:
            return check()
        except UpdateRefused as error:
            if error.reason not in {pb.REASON_CORRUPT_UPDATE, pb.REASON_UNSPECIFIED}:
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
        if owner in self._pushes:
            raise TooMuch("another push of this owner is under way")
        if owner not in self._accepted:
            self._check_open()
            if seat is not Seat.JOINED:
                raise WrongState(f"{owner} is {seat} in this round; join it before you push")

    def _check_open(self) -> None:
        if not self.is_open:
            raise WrongState("the round has ended")
