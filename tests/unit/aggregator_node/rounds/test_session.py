"""What an owner is answered that pushes again, and what becomes of a round that is aborted."""

import struct

import pytest

from aggregator_node.rounds.session import RoundSession
from cairn.errors import Conflict, NotFound, Unavailable, WrongState
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.rounds.calls import FakeCall
from tests.unit.aggregator_node.rounds.test_turns import HEADER, OWNERS, SCHEMA, SetClock, opened


def pushed(live: RoundSession, owner: str, *values: float) -> pb.Signed:
    payload = struct.pack("<3f", *values)
    with live.push(owner, HEADER, FakeCall()) as push:
        push.write(memoryview(payload))
        commit = aggregator_pb2.UpdateCommit(payload_digest=SCHEMA.digest(payload))
        return live.commit(owner, push, commit)


def test_the_same_update_again_has_the_same_receipt_and_another_one_conflicts() -> None:
    live, _ = opened(SetClock())
    with pytest.raises(NotFound):
        live.receipt("alice")
    receipt = pushed(live, "alice", 1, 2, 3)
    assert pushed(live, "alice", 1, 2, 3) is receipt
    assert live.receipt("alice") is receipt
    with pytest.raises(Conflict, match="another update of this owner was accepted"):
        pushed(live, "alice", 1, 2, 4)
    for owner in ("bob", "carol"):
        pushed(live, owner, 1, 2, 3)
    sealed = live.await_seal()
    assert sealed is not None
    assert sealed.contributors == OWNERS
    assert pushed(live, "alice", 1, 2, 3) is receipt  # also after the end


def test_a_round_is_aborted_for_the_first_reason_and_not_once_it_is_sealed() -> None:
    live, _ = opened(SetClock())
    live.abort(pb.REASON_ABORTED)
    live.abort(pb.REASON_STORAGE_FAILED)
    assert not live.is_open
    assert live.await_seal() is None
    assert live.reason == pb.REASON_ABORTED
    live.end(live.reason)
    live.abort(pb.REASON_STORAGE_FAILED)
    assert live.reason == pb.REASON_ABORTED
    sealed, _ = opened(SetClock())
    for owner in OWNERS:
        pushed(sealed, owner, 1, 2, 3)
    assert sealed.await_seal() is not None
    with pytest.raises(WrongState, match="the round has ended"):
        sealed.abort(pb.REASON_ABORTED)


def test_an_owner_whose_call_is_over_waits_in_line_no_more() -> None:
    live, buffers = opened(SetClock())
    gone = FakeCall()
    gone.cancel()
    with live.push("alice", HEADER, FakeCall()):
        with pytest.raises(Unavailable), live.push("bob", HEADER, gone):
            pytest.fail("there is one buffer, and alice has it")
        assert buffers.place("bob") == 0
        assert live.is_open
