"""Which release is the best, and when a job has waited long enough."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.errors import UsageError
from coordinator.best_release import (
    BestSettings,
    BestSoFar,
    check_same_metric,
    has_waited_enough,
    judged,
)


def rule(better: str = "higher", **given: Any) -> BestSettings:
    return BestSettings.model_validate({"metric": "f1", "better": better, **given})


def after(rule: BestSettings, values: Sequence[float]) -> BestSoFar:
    """The best after rounds 1, 2 and so on had these values."""
    best = None
    for number, value in enumerate(values, 1):
        best = judged(rule, best, number, value)
    assert best is not None
    return best


def rounds_of(rule: BestSettings, values: Sequence[float]) -> int:
    """How many of these rounds a job has."""
    for count in range(1, len(values) + 1):
        if has_waited_enough(rule, after(rule, values[:count])):
            return count
    return len(values)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_the_best_release_is_the_first_with_the_highest_or_with_the_lowest_value(
    values: list[float],
) -> None:
    assert after(rule("higher"), values).round == 1 + values.index(max(values))
    assert after(rule("lower"), values).round == 1 + values.index(min(values))


@pytest.mark.parametrize(
    ("values", "rounds"),
    [
        ([0.5, 0.4, 0.3, 0.9], 3),
        ([0.5, 0.4, 0.6, 0.5, 0.6, 0.9], 5),  # an equal value is no gain
        ([0.1, 0.2, 0.3, 0.4], 4),
    ],
)
def test_a_job_ends_after_as_many_rounds_without_a_gain_as_its_patience(
    values: list[float], rounds: int
) -> None:
    assert rounds_of(rule(patience=2), values) == rounds
    assert rounds_of(rule("lower", patience=2), [-value for value in values]) == rounds


def test_a_gain_that_is_too_small_makes_the_best_release_and_does_not_end_the_waiting() -> None:
    small = after(rule(patience=2, min_delta=0.125), [0.5, 0.5625, 0.59375])
    assert (small.round, small.value, small.waited) == (3, 0.59375, 2)


def test_small_gains_are_one_once_they_add_up_to_it() -> None:
    values = [0.5, 0.5625, 0.625, 0.6875, 0.75]
    assert rounds_of(rule(patience=2, min_delta=0.125), values) == 5


def test_a_gain_of_just_the_least_that_counts_does() -> None:
    assert after(rule(patience=2, min_delta=0.25), [0.5, 0.75]).waited == 0


def test_a_job_without_patience_has_all_its_rounds() -> None:
    assert rounds_of(rule(), [0.5] * 99) == 99


def test_a_job_of_which_no_release_was_judged_has_not_waited() -> None:
    assert not has_waited_enough(rule(patience=1), None)


def test_a_run_is_not_judged_by_another_metric_than_it_began_with() -> None:
    best = after(rule(), [0.5])
    check_same_metric(rule(patience=3), best, "runs/a")
    check_same_metric(None, best, "runs/a")
    check_same_metric(rule(), None, "runs/a")
    with pytest.raises(UsageError, match=r'by best\.metric = "f1" with better'):
        check_same_metric(rule("lower"), best, "runs/a")
    with pytest.raises(UsageError, match="write these again"):
        check_same_metric(BestSettings(metric="loss", better="higher"), best, "runs/a")
