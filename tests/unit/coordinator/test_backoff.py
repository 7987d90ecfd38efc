"""Who is left out of a round, for how long, and who never is."""

import json
from collections.abc import Collection
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from coordinator.backoff import LONGEST_REST, Backoff

THREE = ["alice", "bob", "carol"]


def rounds_of(backoff: Backoff, numbers: range, missing: str, floor: int = 2) -> list[int]:
    """Play these rounds with one owner that is never counted; returns those to which it is invited."""
    invited = []
    for number in numbers:
        cohort = backoff.cohort(number, THREE, floor)
        missed = {missing} & set(cohort)
        invited += [number] if missed else []
        backoff.note(number, set(cohort) - missed, missed)
    return invited


def test_an_owner_that_missed_three_rounds_is_left_out_twice_as_long_each_time() -> None:
    invited = rounds_of(Backoff(), range(1, 140), "carol")
    assert invited == [1, 2, 3, 6, 11, 20, 37, 70, 103, 136]
    assert max(b - a for a, b in pairwise(invited)) == LONGEST_REST + 1


def test_once_it_is_counted_all_is_forgotten() -> None:
    backoff = Backoff()
    assert rounds_of(backoff, range(1, 6), "carol") == [1, 2, 3]
    assert backoff.cohort(6, THREE, 2) == THREE
    assert backoff.note(6, THREE, []) == {}
    assert rounds_of(backoff, range(7, 13), "carol") == [7, 8, 9, 12]


def test_two_misses_and_a_round_that_is_counted_leave_nobody_out() -> None:
    backoff = Backoff()
    for number in range(1, 30):
        missed = [] if number % 3 == 0 else ["carol"]
        assert backoff.note(number, set(THREE) - set(missed), missed) == {}
        assert backoff.cohort(number + 1, THREE, 2) == THREE


@given(
    misses=st.lists(st.sets(st.sampled_from(THREE)), max_size=40), stopped_after=st.integers(0, 40)
)
def test_what_goes_through_a_checkpoint_goes_on_as_if_it_had_not(
    misses: list[set[str]], stopped_after: int
) -> None:
    whole, resumed = Backoff(), Backoff()
    for number, missed in enumerate(misses, 1):
        cohort = whole.cohort(number, THREE, 1)
        assert resumed.cohort(number, THREE, 1) == cohort
        ended = set(cohort) - missed, set(cohort) & missed
        assert resumed.note(number, *ended) == whole.note(number, *ended)
        if number == stopped_after:
            resumed = Backoff(json.loads(json.dumps(resumed.failing)))


def test_it_is_told_when_it_is_back() -> None:
    backoff = Backoff()
    told = [backoff.note(number, ["alice", "bob"], ["carol"]) for number in (1, 2, 3)]
    assert told == [{}, {}, {"carol": 6}]
    assert [backoff.cohort(n, THREE, 2) for n in (4, 5, 6)] == [THREE[:2], THREE[:2], THREE]


def test_a_round_without_a_release_counts_only_against_those_it_names() -> None:
    backoff = Backoff()
    for number in (1, 2, 3):
        backoff.note(number, [], ["carol"])
    assert backoff.cohort(4, THREE, 2) == ["alice", "bob"]


def test_nobody_is_left_out_below_the_floor_and_who_is_back_soonest_comes_first() -> None:
    backoff = Backoff()
    for number in (1, 2, 3):
        backoff.note(number, ["alice"], ["carol"])
    for number in (2, 3, 4):
        backoff.note(number, ["alice"], ["bob"])
    assert backoff.cohort(5, THREE, 1) == ["alice"]
    assert backoff.cohort(5, THREE, 2) == ["alice", "carol"]
    assert backoff.cohort(5, THREE, 3) == THREE
    assert backoff.cohort(5, ["bob"], 2) == ["bob"]  # too few as it is


@given(
    st.lists(st.sets(st.sampled_from("abcdef")), max_size=40),
    st.sets(st.sampled_from("abcdef")),
    st.integers(2, 6),
)
def test_a_cohort_is_of_those_present_and_as_large_as_the_floor_where_they_are(
    misses: list[Collection[str]], present: set[str], floor: int
) -> None:
    backoff = Backoff()
    for number, missed in enumerate(misses, 1):
        backoff.note(number, set("abcdef") - set(missed), missed)
    cohort = backoff.cohort(len(misses) + 1, present, floor)
    assert cohort == sorted(set(cohort))
    assert set(cohort) <= present
    assert len(cohort) >= min(floor, len(present))
