"""The order of a job's rounds, and when it is given up."""

import pytest

from cairn.errors import CairnError
from cairn.v1 import round_pb2 as pb
from coordinator.schedule import Schedule, Step


def train(number: int) -> Step:
    return Step(number, pb.PHASE_TRAIN)


def evaluate(number: int) -> Step:
    return Step(number, pb.PHASE_EVALUATE)


def test_rounds_follow_each_other_until_all_are_released() -> None:
    schedule = Schedule(rounds=2, evaluates=False)
    taken = []
    while (step := schedule.next()) is not None:
        taken.append(step)
        schedule.was_released(step)
    assert taken == [train(1), train(2)]


def test_an_evaluating_job_evaluates_each_release_before_the_next_round() -> None:
    schedule = Schedule(rounds=2, evaluates=True)
    taken = []
    while (step := schedule.next()) is not None:
        taken.append(step)
        schedule.was_released(step)
    assert taken == [train(1), evaluate(1), train(2), evaluate(2)]


def test_a_job_that_ends_early_still_evaluates_its_last_release() -> None:
    schedule = Schedule(rounds=9, evaluates=True)
    schedule.was_released(train(1))
    schedule.ends_early = True
    assert schedule.next() == evaluate(1)
    schedule.was_released(evaluate(1))
    assert schedule.next() is None


def test_an_aborted_rounds_number_is_not_used_again() -> None:
    schedule = Schedule(rounds=2, evaluates=False)
    schedule.was_aborted(train(1), pb.REASON_BELOW_FLOOR)
    assert schedule.next() == train(2)
    schedule.was_released(train(2))
    assert schedule.next() == train(3)


def test_an_aborted_evaluation_is_left_out_and_the_job_goes_on() -> None:
    schedule = Schedule(rounds=2, evaluates=True)
    schedule.was_released(train(1))
    schedule.was_aborted(evaluate(1), pb.REASON_BELOW_FLOOR)
    assert schedule.next() == train(2)


def test_evaluations_that_are_refused_do_not_end_a_job_however_many_there_are() -> None:
    schedule = Schedule(rounds=9, evaluates=True)
    for number in range(1, 9):
        schedule.was_released(train(number))
        schedule.was_aborted(evaluate(number), pb.REASON_COHORT_DIFFERENCE)
    assert schedule.next() == train(9)


def test_an_evaluation_that_was_aborted_does_not_count_among_aborts_in_a_row() -> None:
    schedule = Schedule(rounds=9, evaluates=True)
    schedule.was_released(train(1))
    schedule.was_aborted(evaluate(1), pb.REASON_BELOW_FLOOR)
    schedule.was_aborted(train(2), pb.REASON_BELOW_FLOOR)
    schedule.was_aborted(train(3), pb.REASON_BELOW_FLOOR)
    assert schedule.next() == train(4)


def test_three_aborts_in_a_row_end_the_job_with_the_reason() -> None:
    schedule = Schedule(rounds=9, evaluates=False)
    schedule.was_aborted(train(1), pb.REASON_BELOW_FLOOR)
    schedule.was_aborted(train(2), pb.REASON_BELOW_FLOOR)
    with pytest.raises(CairnError, match="BELOW_FLOOR"):
        schedule.was_aborted(train(3), pb.REASON_BELOW_FLOOR)


def test_a_job_whose_owners_all_declined_says_why_and_what_to_do_though_each_round_names_but_one() -> (
    None
):
    schedule = Schedule(rounds=9, evaluates=False)
    declined = [
        pb.Exclusion(owner=o, reason=pb.REASON_SETTING_REFUSED) for o in ("bob", "alice", "bob")
    ]
    lost = pb.Exclusion(owner="carol", reason=pb.REASON_LEASE_EXPIRED)
    schedule.was_aborted(train(1), pb.REASON_BELOW_FLOOR, declined[:1])
    schedule.was_aborted(train(2), pb.REASON_BELOW_FLOOR, [declined[1], lost])
    with pytest.raises(CairnError) as end:
        schedule.was_aborted(train(3), pb.REASON_BELOW_FLOOR, declined[2:])
    cause = "The commonest cause was SETTING_REFUSED of alice, bob: the owner's file does not allow"
    assert cause in str(end.value)
    assert "change that in the job's file" in str(end.value)


def test_owners_that_were_not_counted_before_a_release_are_no_cause_of_what_comes_after() -> None:
    schedule = Schedule(rounds=9, evaluates=False)
    refused = pb.Exclusion(owner="bob", reason=pb.REASON_SETTING_REFUSED)
    schedule.was_aborted(train(1), pb.REASON_BELOW_FLOOR, [refused])
    schedule.was_released(train(2))
    schedule.was_aborted(train(3), pb.REASON_BELOW_FLOOR)
    schedule.was_aborted(train(4), pb.REASON_BELOW_FLOOR)
    with pytest.raises(CairnError) as end:
        schedule.was_aborted(train(5), pb.REASON_BELOW_FLOOR)
    assert "SETTING_REFUSED" not in str(end.value)


@pytest.mark.parametrize(
    ("released", "words"),
    [(0, "The model is as it was at the start"), (1, "that of the last release")],
)
def test_a_job_that_is_given_up_says_whose_model_is_left(released: int, words: str) -> None:
    schedule = Schedule(rounds=9, evaluates=False, opened=released, released=released)
    schedule.was_aborted(train(released + 1), pb.REASON_BELOW_FLOOR)
    schedule.was_aborted(train(released + 2), pb.REASON_BELOW_FLOOR)
    with pytest.raises(CairnError, match=words):
        schedule.was_aborted(train(released + 3), pb.REASON_BELOW_FLOOR)


def test_a_release_between_them_makes_aborts_start_from_nothing() -> None:
    schedule = Schedule(rounds=9, evaluates=False)
    for number in range(1, 9, 3):
        schedule.was_aborted(train(number), pb.REASON_BELOW_FLOOR)
        schedule.was_aborted(train(number + 1), pb.REASON_BELOW_FLOOR)
        schedule.was_released(train(number + 2))
    assert schedule.released == 3


def test_a_resumed_job_goes_on_behind_the_last_opened_round() -> None:
    schedule = Schedule(rounds=5, evaluates=True, opened=4, released=3)
    assert schedule.next() == train(5)


def test_a_resumed_job_first_evaluates_the_release_that_was_not() -> None:
    schedule = Schedule(rounds=5, evaluates=True, opened=3, released=3)
    schedule.resume_evaluation(3)
    assert schedule.next() == evaluate(3)
    assert schedule.awaits_evaluation


@pytest.mark.parametrize("reason", [pb.REASON_ABORTED, pb.REASON_AGGREGATOR_RESTARTED])
def test_a_resumed_job_goes_on_where_its_evaluation_was_ended_by_a_stop(
    reason: "pb.Reason",
) -> None:
    schedule = Schedule(rounds=5, evaluates=True, opened=1, released=1)
    schedule.resume_evaluation(1)
    schedule.was_aborted(evaluate(1), reason)
    assert schedule.next() == train(2)
