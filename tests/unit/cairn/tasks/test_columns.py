"""What an owner counts of its columns, against NumPy on the same values."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from cairn.protocol.statistics import (
    STEPS,
    Column,
    Counts,
    Statistics,
    check_counts,
    counts_of,
    schema_of,
)
from cairn.protocol.summary import summary_of
from cairn.tasks.columns import counted
from cairn.tasks.loader import TaskFailed
from cairn.tasks.runner import TaskRunner
from cairn.tasks.task import Data, Site, Task

AGE = Column("age", 0.0, 100.0, 10)
ANY = st.floats(-1e3, 1e3) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 50.0, 100.0])


@given(
    arrays(np.float64, st.integers(1, 60), elements=ANY),
    st.floats(-200, 150),
    st.floats(0.001, 500),
    st.integers(1, 20),
)
def test_mean_and_deviation_are_numpys_of_the_clamped_values_to_half_a_step(
    values: NDArray[np.float64], low: float, width: float, bins: int
) -> None:
    column = Column("age", low, low + width, bins)
    summary = summary_of(column, Counts(*counted(column, values)))
    there = values[~np.isnan(values)]
    clamped = np.clip(there, column.low, column.high)
    half_a_step = (column.high - column.low) / STEPS / 2 + 1e-12 * (abs(low) + width)
    assert summary.count == len(there)
    assert summary.below == (there < column.low).sum()
    assert summary.above == (there > column.high).sum()
    assert summary.count == sum(n or 0 for n in (summary.below, *summary.cells, summary.above))
    if len(there):
        assert summary.mean == pytest.approx(clamped.mean(), abs=half_a_step)
        assert summary.std == pytest.approx(clamped.std(), abs=half_a_step)


@given(arrays(np.float64, st.integers(0, 60), elements=st.floats(0, 100)))
def test_the_cells_are_those_of_numpys_histogram(values: NDArray[np.float64]) -> None:
    expected, _ = np.histogram(values, bins=AGE.edges)
    assert counted(AGE, values)[1].tolist() == [0, *expected, 0]


@given(
    arrays(np.float64, st.integers(0, 60), elements=ANY),
    arrays(np.float64, st.integers(0, 60), elements=ANY),
)
def test_the_sum_of_two_owners_counts_are_the_counts_of_both_together(
    one: NDArray[np.float64], other: NDArray[np.float64]
) -> None:
    together = counted(AGE, np.concatenate([one, other]))
    for mine, theirs, both in zip(counted(AGE, one), counted(AGE, other), together, strict=True):
        assert (mine + theirs).tolist() == both.tolist()


@given(arrays(np.float64, st.integers(1, 60), elements=ANY))
def test_the_aggregator_takes_whatever_an_owner_counts(values: NDArray[np.float64]) -> None:
    check_counts(STATISTICS, _payload(*counted(AGE, values)), len(values))


STATISTICS = Statistics((AGE,), 10)


def _payload(moments: NDArray[np.int64], histogram: NDArray[np.int64]) -> bytearray:
    payload = bytearray(schema_of(STATISTICS).total_bytes)
    counts = counts_of(STATISTICS, payload)["age"]
    counts.moments[:], counts.histogram[:] = moments, histogram
    return payload


def _run(columns: Any, examples: int = 4, column: Column = AGE) -> Counts:
    statistics = Statistics((column,), 10)
    task = Task(
        model=lambda: torch.nn.Linear(1, 1),
        data=lambda _site: Data(train=None, examples=examples),
        columns=columns,
    )
    update = bytearray(schema_of(statistics).total_bytes)
    outcome = TaskRunner(task, Site("alice", Path())).statistics(statistics, update)
    assert (outcome.examples, outcome.metrics) == (examples, {})
    return counts_of(statistics, update)["age"]


@pytest.mark.parametrize(
    "values",
    [
        [20, 40, 60, float("nan")],
        np.array([20.0, 40, 60, np.nan], np.float32),
        torch.tensor([20.0, 40, 60, torch.nan], requires_grad=True),
        torch.tensor([20.0, 40, 60, torch.nan], dtype=torch.bfloat16),
    ],
)
def test_a_column_may_be_a_list_an_array_or_a_tensor(values: Any) -> None:
    counts = _run(lambda _data: {"age": values, "not asked for": object()})
    assert counts.moments[0] == 3
    assert counts.histogram.tolist() == [0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0]


BOOLS = [torch.tensor([True, False, True, True]), np.array([True, False, True, True]), [True, False, True, True]]  # fmt: skip


@pytest.mark.parametrize("values", BOOLS, ids=["tensor", "array", "list"])
def test_booleans_count_as_zeros_and_ones(values: Any) -> None:
    counts = _run(lambda _: {"age": values}, column=Column("age", 0.0, 1.0, 2))
    assert counts.histogram.tolist() == [0, 1, 3, 0]


@pytest.mark.parametrize("values", BOOLS, ids=["tensor", "array", "list"])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 2.0), (-100.0, 100.0)])
def test_booleans_are_not_counted_within_a_range_where_their_mean_tells_of_few(
    values: Any, low: float, high: float
) -> None:
    """One ill patient of 400 in -1 .. 1: all are in one large cell, and 400 times the mean is 1."""
    with pytest.raises(
        TaskFailed, match="holds bools, which are counted with low = 0 and high = 1"
    ):
        _run(lambda _: {"age": values}, column=Column("age", low, high, 1))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (lambda _: {"size": [1, 2, 3, 4]}, "counts the column age, and the task's columns returned size"),
        (lambda _: {}, "returned none"),
        (lambda _: [1, 2], "columns returned list, expected arrays by name"),
        (lambda _: {"age": [1, 2, 3]}, "has the shape [3]; expected one value for each of the 4"),
        (lambda _: {"age": [[1], [2], [3], [4]]}, "has the shape [4, 1]"),
        (lambda _: {"age": ["old", "young", "old", "old"]}, "age of the task's columns holds no plain numbers"),
        (lambda _: {"age": {"a": 1}}, "holds no plain numbers"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_counted_are_a_failure_that_only_the_owner_is_told_of(
    columns: Any, words: str
) -> None:
    with pytest.raises(TaskFailed) as failed:
        _run(columns)
    assert words in str(failed.value)
    assert failed.value.reason == TaskFailed("").reason


def test_a_task_that_counts_nothing_says_so() -> None:
    with pytest.raises(TaskFailed, match=r"no columns function.*cairn.Task\(..., columns=columns"):
        _run(None)
