"""How long a push may keep its place in memory while others wait for it."""

import gc
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from aggregator_node import event_log
from aggregator_node.aggregation.buffers import BufferPool
from aggregator_node.aggregation.mean import Mean
from aggregator_node.aggregation.workspace import Workspace
from aggregator_node.rounds.session import RoundSession
from aggregator_node.rounds.state import Ending, OwnerState
from aggregator_node.rounds.upload import RoundContext
from cairn.errors import LimitExceeded, Unavailable, UpdateRefused, WrongState
from cairn.model.schema import Schema, TensorSpec
from cairn.model.validation import Bounds
from cairn.protocol.aggregation import Aggregation
from cairn.runtime.clock import Clock
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.scenarios.processes import until
from tests.unit.aggregator_node.rounds.calls import FakeCall
from tests.unit.aggregator_node.rounds.test_upload import JOB, MANIFEST

SECONDS = 60.0
SCHEMA = Schema.of([TensorSpec("w", "F32", (3,))])
OWNERS = ("alice", "bob", "carol")
CONTEXT = RoundContext(
    replace(MANIFEST, cohort=OWNERS, deadline_unix_ms=int(1000 * SECONDS)),
    replace(JOB, owners=OWNERS, schema=SCHEMA),
    Bounds(),
)
HEADER = aggregator_pb2.UpdateHeader(
    base_digest=MANIFEST.base_digest, examples=1, total_bytes=12, salt=bytes(32)
)


class SetClock(Clock):
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def unix_ms(self) -> int:
        return int(1000 * self.now)


def opened(clock: Clock) -> tuple[RoundSession, BufferPool]:
    """A round of three owners with memory for one update at a time."""
    buffers = BufferPool(1, SCHEMA.total_bytes)
    workspace = Workspace(Mean(SCHEMA, Aggregation(), 2), buffers, SCHEMA, 0)
    session = RoundSession(CONTEXT, workspace, clock, lambda *_: pb.Signed(), event_log.write)
    for owner in OWNERS:
        session.join(owner)
    return session, buffers


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def waiting() -> Iterator[list[threading.Thread]]:
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def begin(session: RoundSession, owner: str, taken: list[str]) -> threading.Thread:
    def push() -> None:
        with session.upload(owner, HEADER, FakeCall()):
            taken.append(owner)

    thread = threading.Thread(target=push, daemon=True)
    thread.start()
    return thread


def test_a_push_may_take_its_share_of_the_rounds_time_and_no_more_while_others_wait(
    clock: SetClock, waiting: list[threading.Thread]
) -> None:
    session, buffers = opened(clock)
    taken: list[str] = []
    with session.upload("alice", HEADER, FakeCall()) as upload:
        waiting.append(begin(session, "bob", taken))
        until(lambda: buffers.place("bob") == 1, "bob waits in line")
        clock.now = SECONDS / len(OWNERS) - 0.1
        session.heard("alice", upload)
        clock.now = SECONDS / len(OWNERS)
        with pytest.raises(LimitExceeded, match="others wait in line"):
            session.heard("alice", upload)
        assert taken == []
    until(lambda: taken == ["bob"], "bob has his turn")


def test_a_push_that_nobody_waits_for_may_take_the_whole_round(clock: SetClock) -> None:
    session, _ = opened(clock)
    with session.upload("alice", HEADER, FakeCall()) as upload:
        for clock.now in (1.0, SECONDS / 2, SECONDS - 0.1):
            for owner in OWNERS:
                session.join(owner)
            session.heard("alice", upload)


def test_an_ended_round_lets_its_memory_go_though_its_receipts_stay(clock: SetClock) -> None:
    buffers = BufferPool(1, SCHEMA.total_bytes)
    workspace = Workspace(Mean(SCHEMA, Aggregation(), 2), buffers, SCHEMA, 0)
    session = RoundSession(CONTEXT, workspace, clock, lambda *_: pb.Signed(), event_log.write)
    session.join("alice")
    held = weakref.ref(workspace.rule)
    del workspace
    session.abort(pb.REASON_ABORTED)
    assert session.await_seal() is None
    session.release_memory()
    session.end(pb.REASON_ABORTED)
    gc.collect()
    assert held() is None


def test_a_chunk_renews_the_lease_of_its_owner_alone(clock: SetClock) -> None:
    session, _ = opened(clock)
    lease = CONTEXT.manifest.lease_seconds
    with session.upload("alice", HEADER, FakeCall()) as upload:
        clock.now = lease - 0.1
        session.heard("alice", upload)
        assert session._round.settle(lease) is Ending.ABORT  # the two others are lost
        assert session._round.state_of("alice") is OwnerState.JOINED


def test_a_chunk_that_comes_when_the_round_has_released_its_memory_is_no_trouble(
    clock: SetClock,
) -> None:
    session, _ = opened(clock)
    with session.upload("alice", HEADER, FakeCall()) as upload:
        session.abort(pb.REASON_ABORTED)
        assert session.await_seal() is None
        session.release_memory()
        clock.now = upload.turn_ends
        session.heard("alice", upload)


def test_the_last_owner_that_is_awaited_has_all_the_time_that_is_left(clock: SetClock) -> None:
    session, _ = opened(clock)
    for owner in ("bob", "carol"):
        session.decline(owner, pb.REASON_TASK_FAILED)
    clock.now = 10.0
    with session.upload("alice", HEADER, FakeCall()) as upload:
        assert upload.turn_ends == SECONDS


def test_the_deadline_holds_also_where_nobody_has_sealed_the_round_yet(clock: SetClock) -> None:
    """The thread that seals may come late, as after the whole process was frozen."""
    session, _ = opened(clock)
    commit = aggregator_pb2.UpdateCommit(payload_digest=SCHEMA.digest(bytes(12)))
    with session.upload("alice", HEADER, FakeCall()) as upload:
        upload.write(memoryview(bytes(12)))
        clock.now = SECONDS
        with pytest.raises(WrongState, match="the round has ended"):
            session.commit("alice", upload, commit)
    with pytest.raises(WrongState), session.upload("bob", HEADER, FakeCall()):
        pass
    with pytest.raises(WrongState):
        session.join("bob")
    with pytest.raises(WrongState):
        session.decline("bob", pb.REASON_STOPPING)


def test_an_owner_whose_refusal_ends_the_round_is_told_its_reason(clock: SetClock) -> None:
    """The seal ends what is under way; a refusal that is on its way to its owner is not."""
    session, _ = opened(clock)
    for owner in ("bob", "carol"):
        session.decline(owner, pb.REASON_TASK_FAILED)
    call, update = FakeCall(), bytes.fromhex("0000c07f") * 3  # NaN
    commit = aggregator_pb2.UpdateCommit(payload_digest=SCHEMA.digest(update))
    with session.upload("alice", HEADER, call) as upload:
        upload.write(memoryview(update))
        with pytest.raises(UpdateRefused) as refused:
            session.commit("alice", upload, commit)
        assert session.await_seal() is None
    assert refused.value.reason == pb.REASON_NON_FINITE
    assert not call.cancelled


def test_an_owner_that_declines_again_and_again_is_logged_once(clock: SetClock) -> None:
    session, _ = opened(clock)
    with capture_logs() as lines:
        for _ in range(3):
            session.decline(OWNERS[0], pb.REASON_STOPPING)
    assert [line["event"] for line in lines] == ["declined"]


def test_an_owner_whose_call_is_over_waits_in_line_no_more(clock: SetClock) -> None:
    session, buffers = opened(clock)
    gone = FakeCall()
    gone.cancel()
    with session.upload("alice", HEADER, FakeCall()):
        with pytest.raises(Unavailable), session.upload("bob", HEADER, gone):
            pytest.fail("there is one buffer, and alice has it")
        assert buffers.place("bob") == 0
        assert session.is_open
