"""Who attends, and what is sent to whom."""

from concurrent.futures import ThreadPoolExecutor

from cairn.v1 import coordinator_pb2
from coordinator.owner_sessions import OwnerSessions

INVITATION = coordinator_pb2.AttendResponse(invitation=coordinator_pb2.Invitation(job_spec=b"job"))
OUTCOME = coordinator_pb2.AttendResponse(outcome=coordinator_pb2.Outcome(manifest_digest=b"round"))
LONG = 30.0


def test_the_wait_for_owners_ends_as_soon_as_the_last_owner_comes() -> None:
    sessions = OwnerSessions()
    sessions.enter("alice")
    with ThreadPoolExecutor(1) as pool:
        selected = pool.submit(sessions.wait_for_all, ["alice", "bob"], LONG)
        sessions.enter("bob")
        assert selected.result(LONG) == ["alice", "bob"]


def test_the_wait_for_owners_ends_in_time_with_those_who_came() -> None:
    sessions = OwnerSessions()
    sessions.enter("alice")
    sessions.enter("stranger")
    assert sessions.wait_for_all(["alice", "bob"], 0.01) == ["alice"]


def test_a_later_wait_is_not_for_an_owner_that_was_gone_before() -> None:
    sessions = OwnerSessions()
    sessions.enter("alice")
    sessions.enter("bob")
    present = sessions.wait_for_group(
        [["alice", "bob", "carol"]], expected=["alice", "bob"], floor=2, seconds=LONG
    )
    assert present == ["alice", "bob"]


def test_who_is_waited_for_is_told_once_and_the_waiting_ends() -> None:
    sessions, told = OwnerSessions(), list[list[str]]()
    sessions.enter("alice")
    owners = ["alice", "bob", "carol"]
    assert sessions.wait_for_group([owners], ["alice"], 2, 0.01, told.append) == ["alice"]
    assert told == [["alice"]]


def test_those_who_come_while_it_is_told_are_counted() -> None:
    sessions = OwnerSessions()
    owners = ["alice", "bob"]
    assert sessions.wait_for_group([owners], [], 1, LONG, lambda _: sessions.enter("bob")) == [
        "bob"
    ]


def test_nothing_is_told_where_nobody_is_waited_for() -> None:
    sessions, told = OwnerSessions(), list[list[str]]()
    for owner in ("alice", "bob"):
        sessions.enter(owner)
    owners = ["alice", "bob"]
    assert sessions.wait_for_all(owners, LONG, told.append) == owners
    assert sessions.wait_for_group([owners], owners, 2, LONG, told.append) == owners
    assert told == []


def test_an_invitation_is_sent_again_to_an_owner_that_comes_back() -> None:
    sessions = OwnerSessions()
    first = sessions.enter("alice")
    sessions.invite(["alice", "bob"], INVITATION)
    assert first.next() == INVITATION
    sessions.leave("alice", first)
    assert sessions.enter("alice").next() == INVITATION


def test_an_owner_outside_the_cohort_is_not_invited() -> None:
    sessions = OwnerSessions()
    sessions.invite(["alice", "bob"], INVITATION)
    stream = sessions.enter("carol")
    sessions.tell(["alice", "carol"], OUTCOME)
    assert stream.next() == OUTCOME


def test_an_ended_rounds_invitation_is_withdrawn() -> None:
    sessions = OwnerSessions()
    sessions.invite(["alice"], INVITATION)
    sessions.tell(["alice"], OUTCOME)
    stream = sessions.enter("alice")
    stream.send(None)
    assert stream.next() is None


def test_a_second_stream_of_an_owner_ends_the_first() -> None:
    sessions = OwnerSessions()
    first = sessions.enter("alice")
    second = sessions.enter("alice")
    assert first.next() is None
    sessions.leave("alice", first)  # the late end of the first must not disconnect the second
    sessions.invite(["alice"], INVITATION)
    assert second.next() == INVITATION


def test_an_owner_that_was_not_heard_of_is_counted_again_when_it_comes_back() -> None:
    sessions = OwnerSessions()
    streams = {owner: sessions.enter(owner) for owner in ("alice", "bob")}
    assert sessions.disconnect(["bob", "carol"]) == {"bob"}
    assert streams["bob"].next() is None
    assert sessions.wait_for_group([["alice", "bob"]], [], 1, LONG) == ["alice"]
    sessions.leave("bob", streams["bob"])
    sessions.enter("bob")
    assert sessions.wait_for_group([["alice", "bob"]], [], 2, LONG) == ["alice", "bob"]


def test_dismissal_sends_the_last_event_and_ends_every_stream() -> None:
    sessions = OwnerSessions()
    streams = [sessions.enter(owner) for owner in ("alice", "bob")]
    sessions.dismiss(OUTCOME, seconds=0.01)
    for stream in streams:
        assert stream.next() == OUTCOME
        assert stream.next() is None


def test_waiting_for_owners_ends_when_the_job_is_stopped() -> None:
    sessions = OwnerSessions()
    with ThreadPoolExecutor(1) as pool:
        selected = pool.submit(sessions.wait_for_all, ["alice"], LONG)
        sessions.wake()
        assert selected.result(LONG) == []
