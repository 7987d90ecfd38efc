"""An open round: in which order an update is accepted, summed and told, and how the round ends."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aggregator_node.aggregation.buffers import BufferPool
from aggregator_node.aggregation.mean import Mean
from aggregator_node.aggregation.rule import ReadBlock
from aggregator_node.aggregation.workspace import Workspace
from aggregator_node.events import Event, OwnerDeclined, SumsRefused, UpdateAccepted
from aggregator_node.rounds.session import RoundSession
from cairn.errors import Conflict, LimitExceeded, NotFound, Unavailable, UpdateRefused, WrongState
from cairn.protocol.aggregation import Aggregation
from cairn.runtime.timeouts import SHORT_WAIT_SECONDS
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.rounds.calls import FakeCall
from tests.unit.aggregator_node.rounds.test_turns import (
    CONTEXT,
    HEADER,
    OWNERS,
    SCHEMA,
    SECONDS,
    SetClock,
)

OF = CONTEXT.ids
GOOD = np.ones(3, np.float32).tobytes()


class Full(Mean):
    """A rule that gets no memory for its sums."""

    def add_blocks(self, read: ReadBlock, weight: int) -> None:
        del read, weight
        raise Unavailable("the sums have no memory", pb.REASON_TOO_MUCH)


class Bench:
    """A round of three owners who have joined, and what it tells."""

    def __init__(self, rule: type[Mean] = Mean) -> None:
        self.clock = SetClock()
        self.told: list[Event] = []
        self.look: Callable[[], object] = lambda: None
        self.rule = rule(SCHEMA, Aggregation(), 2)
        self.buffers = BufferPool(2, SCHEMA.total_bytes)
        workspace = Workspace(self.rule, self.buffers, SCHEMA, 0)
        self.session = RoundSession(CONTEXT, workspace, self.clock, self._receipt, self._tell)
        for owner in OWNERS:
            self.session.join(owner)

    def _receipt(self, owner: str, _digest: bytes, _header: object) -> pb.Signed:
        return pb.Signed(body=owner.encode())

    def _tell(self, event: Event) -> None:
        self.told.append(event)
        self.look()

    def push(
        self, owner: str, values: bytes = GOOD, committed: bytes | None = None, **changes: Any
    ) -> pb.Signed:
        header = aggregator_pb2.UpdateHeader()
        header.CopyFrom(HEADER)
        for name, value in changes.items():
            setattr(header, name, value)
        with self.session.upload(owner, header, FakeCall()) as upload:
            upload.write(memoryview(values))
            digest = SCHEMA.digest(values if committed is None else committed)
            commit = aggregator_pb2.UpdateCommit(payload_digest=digest)
            return self.session.commit(owner, upload, commit)


def test_an_update_is_in_the_sums_before_it_is_told() -> None:
    bench = Bench()
    sums: list[int] = []
    bench.look = lambda: sums.append(bench.rule._total_weight)
    bench.push("alice")
    assert (sums, bench.told) == ([1], [UpdateAccepted(*OF, "alice")])


def test_the_same_update_again_has_the_same_receipt_and_is_counted_and_told_once() -> None:
    bench = Bench()
    assert bench.push("alice") == bench.push("alice") == pb.Signed(body=b"alice")
    assert (bench.rule._total_weight, len(bench.told)) == (1, 1)


def test_an_update_that_is_pushed_again_waits_for_no_buffer() -> None:
    bench = Bench()
    bench.push("alice")
    bench.buffers.end()  # from now on whoever asks for one is refused
    assert bench.push("alice").body == b"alice"
    with pytest.raises(Unavailable):
        bench.push("bob")


@pytest.mark.parametrize("other", [{"values": GOOD[::-1]}, {"examples": 2}])
def test_another_update_of_an_owner_is_a_conflict(other: dict[str, Any]) -> None:
    bench = Bench()
    bench.push("alice")
    with pytest.raises(Conflict):
        bench.push("alice", **other)
    assert bench.session.receipt("alice").body == b"alice"


def test_a_corrupt_update_may_be_pushed_again_and_a_refused_one_may_not() -> None:
    bench = Bench()
    with pytest.raises(UpdateRefused, match="digest"):
        bench.push("alice", committed=bytes(12))
    bench.push("alice")
    with pytest.raises(UpdateRefused):
        bench.push("bob", np.full(3, np.nan, np.float32).tobytes())
    with pytest.raises(WrongState, match="refused"):
        bench.session.join("bob")
    with pytest.raises(NotFound):
        bench.session.receipt("bob")


def test_a_bad_repeat_takes_nobody_out_whose_update_is_in_the_sums() -> None:
    bench = Bench()
    bench.push("alice")
    with pytest.raises(UpdateRefused, match="base"):
        bench.push("alice", base_digest=b"x" * 32)
    assert bench.session.join("alice").update_accepted


def test_a_round_whose_sums_have_no_memory_ends_for_that_reason() -> None:
    bench = Bench(Full)
    bench.push("alice")
    assert bench.told == [
        SumsRefused(*OF, "alice", "the sums have no memory"),
        UpdateAccepted(*OF, "alice"),
    ]
    assert bench.session.await_seal() is None
    assert bench.session.reason == pb.REASON_TOO_MUCH


def test_a_round_is_sealed_once_nobody_is_awaited() -> None:
    bench = Bench()
    for owner in OWNERS[:2]:
        bench.push(owner)
    bench.session.decline(OWNERS[2], pb.REASON_TASK_FAILED)
    bench.session.decline(OWNERS[2], pb.REASON_TASK_FAILED)
    sealed = bench.session.await_seal()
    assert sealed is not None
    assert sealed.contributors == OWNERS[:2]
    assert dict(sealed.exclusions).keys() == {OWNERS[2]}
    assert bench.told[2:] == [OwnerDeclined(*OF, OWNERS[2], pb.REASON_TASK_FAILED)]
    with pytest.raises(WrongState):
        bench.session.abort(pb.REASON_ABORTED)


def test_a_round_at_its_deadline_takes_nobody_in_though_it_is_not_sealed_yet() -> None:
    bench = Bench()
    bench.clock.now = SECONDS
    for late in (
        lambda: bench.session.join("alice"),
        lambda: bench.session.decline("alice", pb.REASON_STOPPING),
        lambda: bench.push("alice"),
    ):
        with pytest.raises(WrongState, match="has ended"):
            late()


def test_the_first_reason_to_abort_a_round_stands() -> None:
    bench = Bench()
    for reason in (pb.REASON_ABORTED, pb.REASON_AGGREGATOR_RESTARTED):
        bench.session.abort(reason)
    assert bench.session.await_seal() is None
    assert bench.session.reason == pb.REASON_ABORTED
    with pytest.raises(WrongState):
        bench.session.join("alice")


def test_the_end_of_a_round_cancels_the_uploads_under_way() -> None:
    bench = Bench()
    call = FakeCall()
    with bench.session.upload("alice", HEADER, call):
        bench.session.abort(pb.REASON_ABORTED)
        assert bench.session.await_seal() is None
        assert not call.is_active()


def test_an_upload_is_superseded_only_once_it_has_brought_nothing_for_a_moment() -> None:
    bench = Bench()
    call = FakeCall()
    with bench.session.upload("alice", HEADER, call) as upload:
        for is_active in (True, False):
            bench.clock.now += SHORT_WAIT_SECONDS
            if is_active:
                bench.session.heard("alice", upload)
            with pytest.raises(LimitExceeded, match="another push"):
                bench.push("alice")
            assert call.is_active() is is_active


def test_nothing_is_added_to_memory_that_the_round_has_given_back() -> None:
    bench = Bench()
    with bench.session.upload("alice", HEADER, FakeCall()) as upload:
        upload.write(memoryview(GOOD))
        bench.session.release_memory()
        commit = aggregator_pb2.UpdateCommit(payload_digest=SCHEMA.digest(GOOD))
        with pytest.raises(WrongState, match="has ended"):
            bench.session.commit("alice", upload, commit)
    assert bench.rule._total_weight == 0


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (pb.REASON_UNSPECIFIED, aggregator_pb2.ROUND_STATE_RELEASED),
        (pb.REASON_BELOW_FLOOR, aggregator_pb2.ROUND_STATE_ABORTED),
    ],
)
def test_a_watcher_is_told_how_a_round_ended_and_an_owner_its_receipt(
    reason: "pb.Reason", state: "aggregator_pb2.RoundState"
) -> None:
    bench = Bench()
    bench.push("alice")
    bench.session.end(reason)
    assert bench.session.wait_for_change(aggregator_pb2.ROUND_STATE_OPEN, 0) == state
    assert bench.session.receipt("alice").body == b"alice"


def test_only_broken_uploads_leave_something_to_collect() -> None:
    bench = Bench()
    bench.push("alice")
    assert not bench.session.has_broken_uploads
    with pytest.raises(UpdateRefused):
        bench.push("bob", committed=bytes(12))
    assert bench.session.has_broken_uploads


def test_a_round_is_named_by_its_manifest() -> None:
    bench = Bench()
    other = replace(CONTEXT, manifest=replace(CONTEXT.manifest, round=CONTEXT.manifest.round + 1))
    assert bench.session.digest == CONTEXT.digest != other.digest
