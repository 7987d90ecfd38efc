"""Counts the columns of a task's data for a job of statistics (cairn/protocol/statistics.py)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cairn.protocol.statistics import MOST, STEPS, Column, Statistics, counts_of
from cairn.tasks.loader import TaskFailed
from cairn.tasks.state_dict import WritableBuffer
from cairn.v1 import round_pb2 as pb


def write_counts(
    statistics: Statistics, returned: Any, examples: int, update: WritableBuffer
) -> None:
    """Write the counts of what the task's `columns` returned to `update`. Raises TaskFailed.

    Which columns a task returns may depend on its data, such as one for each category that occurs. So a column that is
    not there is a failure like any other, and nobody else is told of it.
    """
    if not isinstance(returned, Mapping):
        raise TaskFailed(
            f"the task's columns returned {type(returned).__name__}, expected arrays by name"
        )
    counts = counts_of(statistics, update)
    for column in statistics.columns:
        if column.name not in returned:
            names = ", ".join(sorted(map(str, returned))) or "none"
            raise TaskFailed(
                f"the job counts the column {column.name}, and the task's columns returned {names}"
            )
        values = _values(column.name, returned[column.name], examples)
        if _are_bools(returned[column.name]) and (column.low, column.high) != (0, 1):
            # Else both values may lie within one cell, and the mean tells how many of each there are, however few.
            raise TaskFailed(
                f"the column {column.name} of the task's columns holds bools, which are counted with low = 0 and high = 1"
            )
        moments, histogram = counted(column, values)
        if moments[2] > MOST:
            raise TaskFailed(
                f"the squares of the column {column.name} add up to more than can be added: widen its range, or"
                " count fewer examples",
                pb.REASON_MAGNITUDE_REFUSED,
            )
        counts[column.name].moments[:] = moments
        counts[column.name].histogram[:] = histogram


def counted(
    column: Column, values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The moments and the histogram of these values, of which NaN stands for a value that is missing."""
    there = values[~np.isnan(values)]
    low, high = column.low, column.high
    place = (np.clip(there, low, high) - low) / (high - low)
    steps = np.rint(place * STEPS).astype(np.int64) - STEPS // 2
    inside = there[(there >= low) & (there <= high)]
    cells, _ = np.histogram(inside, column.bins, (low, high))
    below, above = np.count_nonzero(there < low), np.count_nonzero(there > high)
    moments = np.array([len(there), steps.sum(), np.square(steps).sum()], np.int64)
    return moments, np.array([below, *cells, above], np.int64)


def _values(name: str, returned: Any, examples: int) -> NDArray[np.float64]:
    try:
        array = returned.detach().double().cpu() if isinstance(returned, Tensor) else returned
        values = np.asarray(array, np.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TaskFailed(
            f"the column {name} of the task's columns holds no plain numbers"
        ) from None
    if values.shape != (examples,):
        raise TaskFailed(
            f"the column {name} of the task's columns has the shape {list(values.shape)}; expected one value for each"
            f" of the {examples} training examples, and NaN where one is missing"
        )
    return values


def _are_bools(returned: Any) -> bool:
    if isinstance(returned, Tensor):
        return returned.dtype == torch.bool
    return bool(np.asarray(returned).dtype == np.bool_)
