"""The rounds that are open or have just ended: starts them, finds them and sees each to its end.

A release, or an abort, is durable before anybody is told of it.
"""

import gc
import threading
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from functools import partial

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_node.admission import MAX_EXHAUSTED_ROUNDS
from aggregator_node.aggregation.workspace import MemoryBudget, Workspace
from aggregator_node.events import Observer, RecordFailed, ReleaseFailed
from aggregator_node.rounds.receipts import signed_receipt
from aggregator_node.rounds.recorder import RoundRecorder
from aggregator_node.rounds.session import ENDED, RoundSession
from aggregator_node.rounds.upload import RoundContext
from aggregator_node.storage.rows import RoundRow
from cairn.errors import LimitExceeded, Unavailable, WrongState
from cairn.protocol.statements import MANIFEST, sign
from cairn.runtime.clock import Clock
from cairn.runtime.failpoints import failpoint
from cairn.runtime.timeouts import SHUTDOWN_SECONDS
from cairn.v1 import round_pb2 as pb

_KEPT_ROUNDS = 64  # ended rounds whose receipts can still be asked for


class RoundRegistry:
    """Every public method may be called from any thread."""

    def __init__(
        self,
        recorder: RoundRecorder,
        memory: MemoryBudget,
        signing_key: Ed25519PrivateKey,
        clock: Clock,
        tell: Observer,
    ) -> None:
        self._recorder = recorder
        self._memory = memory
        self._key = signing_key
        self._clock = clock
        self._tell = tell
        self._lock = threading.Lock()
        self._sessions: dict[bytes, RoundSession] = {}
        self._ended: deque[bytes] = deque()
        # coordinator → its rounds that ended for want of memory
        self._exhausted: Counter[str] = Counter()

    def start(self, coordinator: str, context: RoundContext) -> pb.Signed:
        """Sign the manifest, record it and open the round.

        Raises LimitExceeded for a round that the memory can never hold, Unavailable while others hold it, and
        WrongState where too many of the coordinator's rounds ended for want of memory for their sums, a
        release of it may not stand beside an earlier one, or the model that it starts from is missing.
        """
        self._recorder.check(context)
        self._check_not_exhausted(coordinator)
        digest, phase = context.digest, context.manifest.phase
        signed = sign(self._key, MANIFEST, context.body)
        row = RoundRow(digest, *context.ids, phase, signed.SerializeToString())
        base = self._recorder.base_of(context)
        now = self._clock.monotonic()
        workspace = self._memory.allocate(coordinator, context.size, now, base)
        with ExitStack() as undo:
            undo.callback(self._memory.give_back, workspace)
            self._recorder.open(row, context.manifest)
            undo.callback(self._recorder.abort, row, pb.REASON_STORAGE_FAILED, ())
            failpoint("aggregator.open.after_commit")
            sign_receipt = partial(signed_receipt, self._key, digest)
            session = RoundSession(context, workspace, self._clock, sign_receipt, self._tell)
            workspace.end = partial(_give_up_memory, session)
            with self._lock:
                self._sessions[digest] = session
            undo.callback(self._forget, digest)
            name = f"round-{row.job}-{row.number}"
            arguments = (session, row, context, workspace)
            threading.Thread(
                target=self._see_to_end, args=arguments, name=name, daemon=True
            ).start()
            undo.pop_all()
        return signed

    def find(self, manifest_digest: bytes) -> RoundSession | None:
        """A round that is open or has just ended."""
        with self._lock:
            return self._sessions.get(manifest_digest)

    def under_way(self, coordinator: str | None = None) -> list[RoundSession]:
        """The rounds whose end is not recorded yet: of this coordinator, or all.

        A sealed round is one of them: its release, which the next base must be, is yet to come.
        """
        with self._lock:
            return [
                session
                for session in self._sessions.values()
                if session.state not in ENDED and coordinator in {None, session.coordinator}
            ]

    def record_left_over_ends(self, rows: Iterable[RoundRow]) -> None:
        """Record that these open rounds have ended, where a full disk kept their end from being recorded.

        Raises Unavailable while it still does.
        """
        under_way = {session.digest for session in self.under_way()}
        for row in rows:
            if row.manifest_digest not in under_way:
                with suppress(WrongState):  # ended between the two looks
                    self._recorder.abort(row, pb.REASON_STORAGE_FAILED, ())

    def abort_all(self) -> None:
        """End every open round, because the process is about to end, and wait for the records."""
        under_way = self.under_way()
        for session in under_way:
            with suppress(WrongState):  # sealed meanwhile: then it is released
                session.abort(pb.REASON_AGGREGATOR_RESTARTED)
        for session in under_way:
            session.wait_for_end(SHUTDOWN_SECONDS)

    def _see_to_end(
        self, session: RoundSession, row: RoundRow, context: RoundContext, workspace: Workspace
    ) -> None:
        reason = self._record_end(session, row, context)
        try:
            # Before anybody is told of the end: no update outlives its round here.
            session.release_memory()
            self._memory.give_back(workspace)
            if session.has_broken_uploads:
                gc.collect()  # an error that gRPC keeps refers to the frame that had the last chunk
        finally:
            if reason == pb.REASON_TOO_MUCH:  # counted before the coordinator can open the next
                with self._lock:
                    self._exhausted[session.coordinator] += 1
            session.end(reason)
        with self._lock:
            self._ended.append(session.digest)
            left = self._ended.popleft() if len(self._ended) > _KEPT_ROUNDS else None
        if left is not None:
            self._forget(left)

    def _record_end(
        self, session: RoundSession, row: RoundRow, context: RoundContext
    ) -> "pb.Reason":
        """Wait for the round's end and record it; whatever fails, the round ends.

        Returns the reason why there is no release; unspecified where there is one.
        """
        try:
            sealed = session.await_seal()
            if sealed is None:
                self._recorder.abort(row, session.reason, session.exclusions)
                return session.reason
            failpoint("aggregator.seal.before_release")
            self._recorder.release(row, context, sealed)
            return pb.REASON_UNSPECIFIED
        except Exception as error:  # noqa: BLE001 - whatever fails, the round ends, and the observer is told why
            self._tell(ReleaseFailed(row.job, row.number, error))
            return self._record_abort(session, row, _why_not_released(error, session))

    def _record_abort(
        self, session: RoundSession, row: RoundRow, reason: "pb.Reason"
    ) -> "pb.Reason":
        """Record an abort where that is still possible; returns the reason that is told.

        What was recorded before the failure stands, and is told: a release cannot be taken back.
        """
        try:
            self._recorder.abort(row, reason, session.exclusions)
        except WrongState:
            return self._recorder.end_of(row)
        except Exception as error:  # noqa: BLE001 - the next opening or the next start records it
            self._tell(RecordFailed(row.job, row.number, error))
            return pb.REASON_STORAGE_FAILED
        return reason

    def _check_not_exhausted(self, coordinator: str) -> None:
        with self._lock:
            rounds = self._exhausted[coordinator]
        if rounds >= MAX_EXHAUSTED_ROUNDS:
            raise WrongState(
                f"{rounds} rounds of this coordinator ended because the aggregator had no memory left for their"
                " sums: no other is opened before the aggregator is started again, with more memory_megabytes",
                pb.REASON_TOO_MUCH,
            )

    def _forget(self, digest: bytes) -> None:
        with self._lock:
            self._sessions.pop(digest, None)


def _give_up_memory(session: RoundSession) -> None:
    """Another round is given the memory that the sums have borrowed. A sealed round has it for a moment more."""
    with suppress(WrongState):
        session.abort(pb.REASON_TOO_MUCH)


def _why_not_released(error: Exception, session: RoundSession) -> "pb.Reason":
    reason: pb.Reason = pb.REASON_UNSPECIFIED
    match error:
        case LimitExceeded():  # the average of finite values is not
            reason = pb.REASON_NON_FINITE
        case (
            WrongState() | Unavailable()
        ):  # an earlier release forbids this one; there is no memory or no room
            reason = error.reason
        case OSError():  # it says which file, and what its disk lacks
            pass
        case _:
            reason = session.reason
    return reason or pb.REASON_STORAGE_FAILED
