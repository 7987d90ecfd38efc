"""An owner whose update is refused learns why, whatever becomes of the round meanwhile."""

from collections.abc import Callable

import numpy as np
import pytest

from aggregator_node.rounds.session import RoundSession
from cairn.errors import UpdateRefused, WrongState
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.rounds.calls import FakeCall
from tests.unit.aggregator_node.rounds.test_turns import HEADER, SCHEMA, SetClock, opened


def push(
    session: RoundSession, value: float, call: FakeCall, before_its_answer: Callable[[], object]
) -> None:
    """Push an update of this value for alice."""
    payload = np.full(3, value, "<f4").tobytes()
    commit = aggregator_pb2.UpdateCommit(payload_digest=SCHEMA.digest(payload))
    with session.upload("alice", HEADER, call) as pushed:
        pushed.write(memoryview(payload))
        try:
            session.commit("alice", pushed, commit)
        finally:
            before_its_answer()


def test_the_end_of_a_round_that_a_refusal_brings_about_does_not_take_its_answer_away() -> None:
    session, _ = opened(SetClock())
    call = FakeCall()

    def end() -> None:
        session.decline("bob", pb.REASON_STOPPING)
        session.decline("carol", pb.REASON_STOPPING)
        assert session.await_seal() is None

    with pytest.raises(UpdateRefused) as refusal:
        push(session, np.nan, call, end)
    assert refusal.value.reason == pb.REASON_NON_FINITE
    assert not call.cancelled
    assert dict(session.exclusions)["alice"] == pb.REASON_NOT_COUNTED


@pytest.mark.parametrize(
    ("owner", "reason"),
    [("alice", pb.REASON_MAGNITUDE_REFUSED), ("bob", pb.REASON_ROUND_ENDED)],
)
def test_an_owner_that_missed_the_answer_is_told_when_it_asks_also_after_the_end(
    owner: str, reason: "pb.Reason"
) -> None:
    session, _ = opened(SetClock())
    with pytest.raises(UpdateRefused):
        push(session, 1e30, FakeCall(), lambda: None)
    session.abort(pb.REASON_ABORTED)
    assert session.await_seal() is None
    session.end(pb.REASON_ABORTED)
    with pytest.raises(WrongState) as told:
        session.join(owner)
    assert told.value.reason == reason
