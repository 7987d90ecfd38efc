"""Which statistics may be released beside which."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from aggregator_node.rounds.disclosure import ReleaseOverlap
from aggregator_node.rounds.upload import RoundContext
from cairn.errors import WrongState
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.statistics import Column, Statistics, schema_of
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.rounds.test_upload import CONTEXT

AGE, SIZE = Column("age", 0.0, 100.0, 10), Column("size", 0.0, 5.0, 10)
FIRST = b"1" * 32


def asks(*columns: Column, task: str = "tumours", min_cell: int = 10) -> RoundContext:
    statistics = Statistics(columns, min_cell)
    aggregation = Aggregation(pb.CONTENT_STATISTICS, pb.RULE_SUM)
    job = replace(
        CONTEXT.job,
        task=task,
        statistics=statistics,
        schema=schema_of(statistics),
        aggregation=aggregation,
        rounds=1,
    )
    return RoundContext(replace(CONTEXT.manifest, aggregation=aggregation), job, CONTEXT.bounds)


def after(owners: str, *columns: Column, most: int = 1) -> ReleaseOverlap:
    overlap = ReleaseOverlap(any_base=False, max_statistics=most)
    assert not overlap.add(FIRST, asks(*columns), owners, has_metrics=True)
    return overlap


@pytest.mark.parametrize("owners", ["ab", "abcd", "cde", "a"])
def test_other_owners_that_overlap_are_refused_whatever_the_columns(owners: str) -> None:
    with pytest.raises(WrongState, match="of single owners") as refusal:
        after("abc", AGE).check(asks(SIZE), owners)
    assert refusal.value.reason == pb.REASON_COHORT_DIFFERENCE


@pytest.mark.parametrize("owners", ["abc", "def"])
def test_other_columns_of_the_same_owners_or_of_none_of_them_are_allowed(owners: str) -> None:
    assert not after("abc", AGE).check(asks(SIZE), owners)  # and nothing of metrics


def test_another_task_has_other_data() -> None:
    after("abc", AGE).check(asks(AGE, task="other"), "abcd")


@pytest.mark.parametrize("any_base", [True, False])
def test_a_training_is_not_compared_with_statistics(any_base: bool) -> None:  # noqa: FBT001 - a parameter of the test
    overlap = ReleaseOverlap(any_base=any_base)
    overlap.add(FIRST, asks(AGE), "abc", has_metrics=False)
    overlap.check(CONTEXT, "abcd")


def test_a_column_is_released_once_unless_the_aggregators_file_allows_more() -> None:
    with pytest.raises(
        WrongState, match=r"age .* was released as often as .*\(1, max_statistics\)"
    ):
        after("abc", AGE).check(asks(AGE, SIZE), "abc")
    twice = after("abc", AGE, most=2)
    twice.add(b"2" * 32, asks(AGE), "abc", has_metrics=False)
    with pytest.raises(WrongState, match=r"was released as often as .*\(2, max_statistics"):
        twice.check(asks(AGE), "abc")


@pytest.mark.parametrize(
    "change",
    [
        lambda: asks(replace(AGE, low=-1.0)),
        lambda: asks(replace(AGE, high=99.0)),
        lambda: asks(replace(AGE, bins=11)),
        lambda: asks(AGE, min_cell=11),
    ],
)
def test_a_column_is_never_released_in_another_way(change: Callable[[], RoundContext]) -> None:
    """A range that ends one value earlier tells how many have that value."""
    with pytest.raises(WrongState, match="another min_cell"):
        after("abc", AGE, most=9).check(change(), "abc")


def test_what_was_not_released_after_all_is_forgotten() -> None:
    overlap = after("abc", AGE)
    overlap.forget(FIRST, asks(AGE))
    overlap.check(asks(AGE), "abcd")
