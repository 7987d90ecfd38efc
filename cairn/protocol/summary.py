"""What a release of statistics says, in figures: how many, the mean, the variance and the histogram of each column. Pure.

The grid of `cairn.protocol.statistics` moves each value by half a step at the most. So the mean, and the root of the
variance, are those of the clamped values to within half a step: 1 / 131072 of the range.
"""

import math
from dataclasses import dataclass
from typing import Any

from cairn.protocol.statistics import STEPS, SUPPRESSED, Column, Counts, Statistics, counts_of
from cairn.runtime.buffer import Buffer


@dataclass(frozen=True)
class Summary:
    """What a release says of a column; None where it is suppressed, and for mean and variance of no example.

    `variance` is the mean squared distance from the mean, as `numpy.var` has it.
    """

    count: int | None
    mean: float | None
    variance: float | None
    below: int | None
    cells: tuple[int | None, ...]
    above: int | None

    @property
    def std(self) -> float | None:
        return None if self.variance is None else math.sqrt(self.variance)


def summary_of(column: Column, counts: Counts) -> Summary:
    """The figures of one column."""
    count, total, squares = map(int, counts.moments)
    below, *cells, above = (None if n == SUPPRESSED else int(n) for n in counts.histogram)
    mean = variance = None
    if count > 0 and squares != SUPPRESSED:
        width = column.high - column.low
        mean = column.low + (total / count / STEPS + 0.5) * width
        spread = count * squares - total * total  # exact: Python's integers
        variance = spread / count**2 / STEPS**2 * width * width
    return Summary(
        None if count == SUPPRESSED else count, mean, variance, below, tuple(cells), above
    )


def report_of(job: str, statistics: Statistics, payload: Buffer) -> dict[str, Any]:
    """All of a release, as statistics.json has it."""
    counts = counts_of(statistics, payload)
    return {
        "job": job,
        "min_cell": statistics.min_cell,
        "columns": {
            column.name: _in_words(column, summary_of(column, counts[column.name]))
            for column in statistics.columns
        },
    }


def _in_words(column: Column, summary: Summary) -> dict[str, Any]:
    return {
        "count": summary.count,
        "mean": summary.mean,
        "std": summary.std,
        "variance": summary.variance,
        "low": column.low,
        "high": column.high,
        "below": summary.below,
        "histogram": list(summary.cells),
        "above": summary.above,
    }
