"""Who attends, and what is sent to whom."""

from concurrent.futures import ThreadPoolExecutor

from cairn.v1 import coordinator_pb2
from coordinator.owner_sessions import OwnerSessions

INVITATION = coordinator_pb2.AttendResponse(invitation=coordinator_pb2.Invitation(job_spec=b"job"))
OUTCOME = coordinator_pb2.AttendResponse(outcome=coordinator_pb2.Outcome(manifest_digest=b"round"))
LONG = 30.0


def test_a_gathering_ends_as_soon_as_the_last_owner_comes() -> None:
    attendance = OwnerSessions()
    attendance.enter("alice")
    with ThreadPoolExecutor(1) as pool:
        gathered = pool.submit(attendance.gather_all, ["alice", "bob"], LONG)
        attendance.enter("bob")
        assert gathered.result(LONG) == ["alice", "bob"]


def test_a_gathering_ends_in_time_with_those_who_came() -> None:
    attendance = OwnerSessions()
    attendance.enter("alice")
    attendance.enter("stranger")
    assert attendance.gather_all(["alice", "bob"], 0.01) == ["alice"]


def test_a_later_gathering_does_not_wait_for_an_owner_that_was_gone_before() -> None:
    attendance = OwnerSessions()
    attendance.enter("alice")
    attendance.enter("bob")
    present = attendance.gather(
        [["alice", "bob", "carol"]], expected=["alice", "bob"], floor=2, seconds=LONG
    )
    assert present == ["alice", "bob"]


def test_who_is_waited_for_is_told_once_and_the_waiting_ends() -> None:
    attendance, told = OwnerSessions(), list[list[str]]()
    attendance.enter("alice")
    owners = ["alice", "bob", "carol"]
    assert attendance.gather([owners], ["alice"], 2, 0.01, told.append) == ["alice"]
    assert told == [["alice"]]


def test_those_who_come_while_it_is_told_are_gathered() -> None:
    attendance = OwnerSessions()
    owners = ["alice", "bob"]
    assert attendance.gather([owners], [], 1, LONG, lambda _: attendance.enter("bob")) == ["bob"]


def test_nothing_is_told_where_nobody_is_waited_for() -> None:
    attendance, told = OwnerSessions(), list[list[str]]()
    for owner in ("alice", "bob"):
        attendance.enter(owner)
    owners = ["alice", "bob"]
    assert attendance.gather_all(owners, LONG, told.append) == owners
    assert attendance.gather([owners], owners, 2, LONG, told.append) == owners
    assert told == []


def test_an_invitation_is_sent_again_to_an_owner_that_comes_back() -> None:
    attendance = OwnerSessions()
    first = attendance.enter("alice")
    attendance.invite(["alice", "bob"], INVITATION)
    assert first.next() == INVITATION
    attendance.leave("alice", first)
    assert attendance.enter("alice").next() == INVITATION


def test_an_owner_outside_the_cohort_is_not_invited() -> None:
    attendance = OwnerSessions()
    attendance.invite(["alice", "bob"], INVITATION)
    seat = attendance.enter("carol")
    attendance.tell(["alice", "carol"], OUTCOME)
    assert seat.next() == OUTCOME


def test_an_ended_rounds_invitation_is_withdrawn() -> None:
    attendance = OwnerSessions()
    attendance.invite(["alice"], INVITATION)
    attendance.tell(["alice"], OUTCOME)
    seat = attendance.enter("alice")
    seat.send(None)
    assert seat.next() is None


def test_a_second_stream_of_an_owner_ends_the_first() -> None:
    attendance = OwnerSessions()
    first = attendance.enter("alice")
    second = attendance.enter("alice")
    assert first.next() is None
    attendance.leave("alice", first)  # the late end of the first must not unseat the second
    attendance.invite(["alice"], INVITATION)
    assert second.next() == INVITATION


def test_an_owner_that_was_not_heard_of_is_counted_again_when_it_comes_back() -> None:
    attendance = OwnerSessions()
    seats = {owner: attendance.enter(owner) for owner in ("alice", "bob")}
    assert attendance.unseat(["bob", "carol"]) == {"bob"}
    assert seats["bob"].next() is None
    assert attendance.gather([["alice", "bob"]], [], 1, LONG) == ["alice"]
    attendance.leave("bob", seats["bob"])
    attendance.enter("bob")
    assert attendance.gather([["alice", "bob"]], [], 2, LONG) == ["alice", "bob"]


def test_dismissal_sends_the_last_event_and_ends_every_stream() -> None:
    attendance = OwnerSessions()
    seats = [attendance.enter(owner) for owner in ("alice", "bob")]
    attendance.dismiss(OUTCOME, seconds=0.01)
    for seat in seats:
        assert seat.next() == OUTCOME
        assert seat.next() is None


def test_waiting_for_owners_ends_when_the_job_is_stopped() -> None:
    attendance = OwnerSessions()
    with ThreadPoolExecutor(1) as pool:
        gathered = pool.submit(attendance.gather_all, ["alice"], LONG)
        attendance.wake()
        assert gathered.result(LONG) == []
