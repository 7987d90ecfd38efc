"""A round while it is open: the pure state machine with its lock, its updates and its end.

Updates live here and nowhere else, in memory, until the round is sealed; then they are overwritten. What an
owner's receipt says of its update stays a while longer, for the owner to ask for.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from aggregator_node.aggregation.workspace import Workspace
from aggregator_node.events import Observer, OwnerDeclined, UpdateAccepted
from aggregator_node.rounds.results import Accepted, AcceptedUpdates, SealedRound
from aggregator_node.rounds.state import Ending, OwnerState, Round
from aggregator_node.rounds.upload import Call, RoundContext, Upload, Uploads, check_header
from aggregator_node.rounds.weight_capping import WeightCapping
from cairn.errors import UpdateRefused, WrongState
from cairn.runtime.clock import Clock
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb

T = TypeVar("T")

ENDED = frozenset({aggregator_pb2.ROUND_STATE_RELEASED, aggregator_pb2.ROUND_STATE_ABORTED})


class RoundSession:
    """One open round. Every public method may be called from any thread."""

    def __init__(
        self,
        context: RoundContext,
        workspace: Workspace,
        clock: Clock,
        sign_receipt: Callable[[str, bytes, aggregator_pb2.UpdateHeader], pb.Signed],
        tell: Observer,
    ) -> None:
        """Open the round now. `sign_receipt` takes the owner, the update's digest and its header."""
        now, manifest = clock.monotonic(), context.manifest
        deadline = now + (manifest.deadline_unix_ms - clock.unix_ms()) / 1000
        self.digest = context.digest
        self.manifest = manifest
        self.coordinator = workspace.coordinator
        self.state = aggregator_pb2.ROUND_STATE_OPEN
        self.reason: pb.Reason = pb.REASON_UNSPECIFIED
        self.exclusions: tuple[tuple[str, pb.Reason], ...] = ()
        self._context = context
        self._clock = clock
        self._sign_receipt = sign_receipt
        self._tell = tell
        self._round = Round.open(
            manifest.cohort, manifest.floor, manifest.lease_seconds, deadline, now
        )
        self._workspace: Workspace | None = workspace
        self._sums = WeightCapping(context, tell)
        self._capping = threading.Lock()
        self._uploads = Uploads()
        self.has_broken_uploads = False  # whose last bytes wait for Python's collector
        self._accepted = AcceptedUpdates()
        self._abort_reason: pb.Reason = pb.REASON_UNSPECIFIED
        self._changed = threading.Condition()

    def join(self, owner: str) -> aggregator_pb2.JoinRoundResponse:
        """Take the owner in, or renew its lease. Raises WrongState, also of an update refused before."""
        with self._changed:
            self._round.check_not_refused(owner)
        with self._while_open():
            now = self._clock.monotonic()
            self._round.join(owner, now)
            return aggregator_pb2.JoinRoundResponse(
                lease_seconds=self.manifest.lease_seconds,
                update_accepted=owner in self._accepted,
                open_seconds=math.ceil(max(0.0, self._round.deadline - now)),
                queue_place=self._memory().buffers.place(owner),
            )

    def decline(self, owner: str, reason: "pb.Reason") -> None:
        """The owner does not take part."""
        with self._while_open():
            is_repeated = self._round.state_of(owner) is OwnerState.DECLINED
            self._round.decline(owner, reason)
        if not is_repeated:  # an owner may say so as often as it likes
            self._tell(OwnerDeclined(*self._context.ids, owner, reason))

    def receipt(self, owner: str) -> pb.Signed:
        """The owner's receipt, also after the round ended. Raises NotFound before."""
        with self._changed:
            self._round.state_of(owner)
            return self._accepted.receipt(owner)

    @contextmanager
    def upload(
        self, owner: str, header: aggregator_pb2.UpdateHeader, call: Call
    ) -> Iterator[Upload]:
        """Let the owner push inside, as soon as there is memory for it; one upload of an owner at a time."""
        with self._changed:
            self._check_may_push(owner)
        self._refusing(owner, lambda: check_header(header, self._context))
        upload = Upload(header, self._context, call)
        with self._changed:
            self._check_may_push(owner)
            self._uploads.begin(owner, upload, self._clock.monotonic())
            is_repeated = owner in self._accepted
        try:
            with nullcontext() if is_repeated else self._buffer_for(owner, upload):
                yield upload
        except BaseException:
            self.has_broken_uploads = True
            raise
        finally:
            with self._changed:
                self._uploads.end(owner, upload)

    def heard(self, owner: str, upload: Upload) -> None:
        """A chunk arrived, which renews the owner's lease. Raises LimitExceeded as `Upload.check_turn` does."""
        now = self._clock.monotonic()
        with self._changed:
            upload.heard_at = now
            if self.is_open:
                self._round.join(owner, now)
            workspace = self._workspace
        if workspace is not None:
            upload.check_turn(now, workspace.buffers)

    def commit(self, owner: str, upload: Upload, commit: aggregator_pb2.UpdateCommit) -> pb.Signed:
        """Accept the pushed update and return its receipt; the same update again, the same receipt.

        Raises UpdateRefused for a bad update, Conflict where another was accepted, WrongState where
        the round has ended.
        """
        digest = self._refusing(owner, lambda: upload.finish(commit), upload)
        receipt = self._sign_receipt(owner, digest, upload.header)
        update = Accepted(upload.header_digest(), digest, receipt, upload.metrics)
        with self._capping:
            with self._changed:
                # Complete: the seal, which ends what is under way, must not take its answer away.
                self._uploads.end(owner, upload)
                if before := self._accepted.repeated(owner, update):
                    return before
                self._check_in_time()
                self._round.accept(owner)
                self._accepted.add(owner, update)
            failure = self._sums.take(owner, upload, self._memory())
        self._tell(UpdateAccepted(*self._context.ids, owner))
        with self._changed:
            self._abort_reason = self._abort_reason or failure
            self._changed.notify_all()
        return receipt

    def abort(self, reason: "pb.Reason") -> None:
        """End the round without a release. Raises WrongState where it is sealed or released."""
        with self._changed:
            if self.state == aggregator_pb2.ROUND_STATE_ABORTED or self._abort_reason:
                return
            if not self.is_open:
                raise _ended()
            self._abort_reason = reason
            self._changed.notify_all()

    def await_seal(self) -> SealedRound | None:
        """Wait until the round ends; returns what is to be released, or None for an aborted round."""
        with self._changed:
            while (ending := self._ending()) is None:
                wait = self._round.next_event() - self._clock.monotonic()
                self._changed.wait(max(0.0, wait))
            self._uploads.cancel_all()
            sealed = ending is Ending.SEAL and self._is_above_floor()
            self.exclusions = tuple(self._round.exclusions(self._clock.monotonic()))
            if sealed:
                self.state = aggregator_pb2.ROUND_STATE_SEALED
                self._changed.notify_all()
            else:
                self._abort_reason = self._abort_reason or pb.REASON_BELOW_FLOOR
                self.reason = self._abort_reason
            self._memory().buffers.wake()
        if not sealed:
            return None
        with self._capping:
            counts = self._sums.finish(self._memory())
        return self._accepted.sealed(self._memory().rule, counts, self.exclusions)

    def release_memory(self) -> None:
        """The round needs its memory no more. After this no update is added to the sums."""
        with self._capping:
            self._sums.forget()
            self._workspace = None

    def end(self, reason: "pb.Reason") -> None:
        """Let the watchers know how the round ended; without a reason it was released."""
        with self._changed:
            self.reason = reason
            released, aborted = (
                aggregator_pb2.ROUND_STATE_RELEASED,
                aggregator_pb2.ROUND_STATE_ABORTED,
            )
            self.state = aborted if reason else released
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

    def _ending(self) -> Ending | None:
        if self._abort_reason:
            return Ending.ABORT
        return self._round.settle(self._clock.monotonic())

    def _is_above_floor(self) -> bool:
        """Whether by the job's rule every element of a release is an average over as many as the floor."""
        if not self.manifest.trains:
            return True
        averaged = self.manifest.aggregation.averages_over(len(self._accepted), self.manifest.floor)
        return averaged >= self.manifest.floor

    @contextmanager
    def _buffer_for(self, owner: str, upload: Upload) -> Iterator[None]:
        buffers, call = self._memory().buffers, upload.call
        call.add_callback(buffers.wake)  # when the call ends, in whatever way
        with buffers.borrow(owner, lambda: not (self.is_open and call.is_active())) as buffer:
            with self._changed:
                turn_ends = self._round.end_of_turn(self._clock.monotonic(), buffers.count)
            upload.keep_in(buffer, turn_ends)
            yield

    def _memory(self) -> Workspace:
        if self._workspace is None:
            raise _ended()
        return self._workspace

    def _refusing(self, owner: str, check: Callable[[], T], upload: Upload | None = None) -> T:
        """Run a check of an update; where no retry can mend it, the owner is out of the round."""
        try:
            return check()
        except UpdateRefused as error:
            if error.reason != pb.REASON_CORRUPT_UPDATE:
                with self._changed:
                    if upload is not None:  # the end of the round must not take its answer away
                        self._uploads.end(owner, upload)
                    if self.is_open and self._round.can_refuse(owner):
                        self._round.refuse(owner, error.reason)
                        self._changed.notify_all()
            raise

    @contextmanager
    def _while_open(self) -> Iterator[None]:
        with self._changed:
            self._check_in_time()
            yield
            self._changed.notify_all()

    def _check_may_push(self, owner: str) -> None:
        state = self._round.state_of(owner)
        self._uploads.check_free(owner, self._clock.monotonic())
        if owner not in self._accepted:
            self._check_in_time()
            if state is not OwnerState.JOINED:
                raise WrongState(f"{owner} is {state} in this round; join it before you push")

    def _check_in_time(self) -> None:
        """The deadline holds for owners also where the thread that seals has not come to it yet."""
        if not self.is_open or self._clock.monotonic() >= self._round.deadline:
            raise _ended()


def _ended() -> WrongState:
    return WrongState("the round has ended", pb.REASON_ROUND_ENDED)
