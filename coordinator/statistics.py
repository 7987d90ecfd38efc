"""What a job's file says of statistics, and how a person is shown what came of them."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from cairn.config import Settings
from cairn.protocol.limits import MAX_EXAMPLES
from cairn.protocol.statistics import MAX_BINS, MIN_CELL, Column, Statistics

_ROW = "{:<{width}} {:>10} {:>14} {:>14}"


class ColumnSettings(Settings):
    """A column. Values outside `low` to `high` count as these, and the range is divided into so many `bins`."""

    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]
    bins: Annotated[int, Field(ge=1, le=MAX_BINS)] = 10


class StatisticsSettings(Settings):
    """What a job counts instead of training. Cells of fewer than `min_cell` examples are not released."""

    min_cell: Annotated[int, Field(ge=2, le=MAX_EXAMPLES)] = MIN_CELL
    columns: Annotated[dict[str, ColumnSettings], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> "StatisticsSettings":
        self.counted.check()
        return self

    @property
    def counted(self) -> Statistics:
        columns = {
            name: Column(name, each.low, each.high, each.bins)
            for name, each in self.columns.items()
        }
        return Statistics.of(columns, self.min_cell)


def table_of(report: dict[str, Any]) -> list[str]:
    """A line for each column of a report: its name, how many examples have it, their mean and standard deviation."""
    columns = report["columns"]
    width = max(map(len, ["column", *columns]))
    lines = [_ROW.format("column", "count", "mean", "std", width=width)]
    for name, figures in columns.items():
        values = (_shown(figures[key]) for key in ("count", "mean", "std"))
        lines.append(_ROW.format(name, *values, width=width))
    return lines


def _shown(value: float | None) -> str:
    if value is None:
        return "suppressed"
    return str(value) if isinstance(value, int) else f"{value:.6g}"
