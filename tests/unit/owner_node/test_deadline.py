"""What a round's deadline cuts off, and how an owner calls that."""

import time
from collections.abc import Callable

import pytest

from cairn.errors import CairnError, Unavailable, WrongState
from cairn.tasks.loader import TaskFailed
from cairn.v1 import round_pb2 as pb
from owner_node.deadline import Deadline, not_fetched, too_late
from owner_node.invitation import Declined
from owner_node.lease import Lease

ENDED = WrongState("the round has ended", pb.REASON_ROUND_ENDED)


def lease(seconds: float) -> Lease:
    return Lease(lambda: None, seconds, time.monotonic() + 1e5, lambda: None, lambda _: None)


def cut_off(left: float, error: Exception, as_what: Callable[[str], CairnError]) -> CairnError:
    """What becomes of the error where so many seconds are left to the deadline at least."""
    deadline = Deadline(time.monotonic() + left, time.monotonic() + left + 1)
    with pytest.raises(CairnError) as caught, deadline.cuts_off(as_what):
        raise error
    return caught.value


def test_it_is_never_earlier_than_the_aggregators_own() -> None:
    """Which has left more than the seconds that it says less one, and began no earlier than it was asked."""
    asked = time.monotonic()
    deadline = Deadline.of(asked, open_seconds=60)
    assert deadline.earliest == asked + 59
    assert deadline.latest >= asked + 60


def test_work_that_ends_with_a_lease_held_was_shown_as_late() -> None:
    for error in (ENDED, Unavailable("no answer")):
        found = cut_off(0, error, lambda why: too_late(lease(60), why))
        assert found.reason == pb.REASON_DEADLINE


def test_work_of_an_owner_that_was_not_heard_of_was_shown_as_lost() -> None:
    found = cut_off(0, ENDED, lambda why: too_late(lease(0), why))
    assert found.reason == pb.REASON_LEASE_EXPIRED


def test_a_base_that_was_not_there_in_time_is_a_decline() -> None:
    found = cut_off(0, ENDED, not_fetched)
    assert isinstance(found, Declined)
    assert found.reason == pb.REASON_FETCH_FAILED


def test_a_round_that_others_end_before_its_deadline_is_not_called_late() -> None:
    assert cut_off(60, ENDED, lambda why: too_late(lease(60), why)) is ENDED


@pytest.mark.parametrize(
    "error", [TaskFailed("it raised"), Declined("stopping", pb.REASON_STOPPING)], ids=repr
)
def test_what_the_owner_or_its_task_says_stays_as_it_is(error: CairnError) -> None:
    assert cut_off(0, error, lambda why: too_late(lease(60), why)) is error
