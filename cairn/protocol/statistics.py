"""What a job of statistics counts, and the tensors that follow from it: the same at every party. Pure.

Of each column there are two tensors of I64, in which everything is a sum over the examples that have a value:

    NAME.moments     3          how many have one; the sum of their steps; the sum of the squares of their steps
    NAME.histogram   bins + 2   how many are below `low`, in each cell of equal width, and above `high`

A value is clamped to low .. high and put on a grid of `STEPS` steps over that range. Its step is counted from the middle
of the range, so it is -STEPS / 2 to STEPS / 2, and the sums are exact integers whatever the order. A cell has its lower
edge and not its upper one, but for the last, which has both, as `numpy.histogram` has it. In a release SUPPRESSED stands for
what the aggregator keeps to itself (aggregator_node/aggregation/suppression.py).
"""

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cairn.errors import InvalidMessage, UpdateRefused
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.limits import MAX_EXAMPLES
from cairn.runtime.buffer import Buffer
from cairn.v1 import round_pb2 as pb

STEPS = 1 << 16
SUPPRESSED = -1
MIN_CELL = 10  # unless a file says otherwise
MAX_COLUMNS = 1000
MAX_BINS = 1000
MOST = 1 << 52  # of a sum of one owner, so that those of MAX_COHORT owners add up within int64
_LARGEST = 1e100  # of a column's bounds; a range must not overflow
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .-]{0,63}")


@dataclass(frozen=True)
class Column:
    """How one column is counted; the fields are those of the message of the same name."""

    name: str
    low: float
    high: float
    bins: int

    @property
    def edges(self) -> NDArray[np.float64]:
        """Where the cells begin and end, `bins + 1` values; below the first and above the last are cells as well."""
        return np.linspace(self.low, self.high, self.bins + 1)

    def check(self) -> None:
        """Raise ValueError with a sentence for a column that cannot be counted."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"a column is called {self.name[:80]!r}; a name has 1 to 64 letters, digits, spaces and _ . -"
            )
        if not -_LARGEST <= self.low < self.high <= _LARGEST:  # also refuses NaN
            raise ValueError(
                f"the column {self.name} has low = {self.low:g} and high = {self.high:g}; the smaller comes first, and both"
                f" are {-_LARGEST:g} to {_LARGEST:g}"
            )
        if not 1 <= self.bins <= MAX_BINS:
            raise ValueError(f"the column {self.name} has bins = {self.bins}; take 1 to {MAX_BINS}")
        if not (np.diff(self.edges) > 0).all():
            raise ValueError(
                f"the column {self.name} has more bins than there are numbers from low to high: take fewer"
            )


@dataclass(frozen=True)
class Statistics:
    """What a job counts; the fields are those of the message of the same name."""

    columns: tuple[Column, ...]
    min_cell: int

    @classmethod
    def of(cls, columns: Mapping[str, Column], min_cell: int) -> "Statistics":
        """The columns in the order of the contract."""
        return cls(tuple(columns[name] for name in sorted(columns)), min_cell)

    def check(self) -> None:
        """Raise ValueError with a sentence for what cannot be counted."""
        names = [column.name for column in self.columns]
        if not 1 <= len(names) <= MAX_COLUMNS:
            raise ValueError(f"a job of statistics has 1 to {MAX_COLUMNS} columns")
        if names != sorted(set(names)):
            raise ValueError("the columns are not sorted by their names, or one stands there twice")
        if not 2 <= self.min_cell <= MAX_EXAMPLES:  # noqa: PLR2004 - a cell of one is that one
            raise ValueError(f"min_cell = {self.min_cell} must be 2 to {MAX_EXAMPLES}")
        for column in self.columns:
            column.check()


@dataclass(frozen=True)
class Counts:
    """The values of one column's two tensors; views, where they are made of a payload."""

    moments: NDArray[np.int64]
    histogram: NDArray[np.int64]


def schema_of(statistics: Statistics) -> Schema:
    """The tensors of a job that counts this."""
    return Schema.of(
        TensorSpec(f"{column.name}.{part}", "I64", (length,))
        for column in statistics.columns
        for part, length in (("moments", 3), ("histogram", column.bins + 2))
    )


def counts_of(statistics: Statistics, payload: Buffer | NDArray[np.uint8]) -> dict[str, Counts]:
    """The counts in a payload of `schema_of`, by column; they share its memory."""
    schema, flat = schema_of(statistics), np.frombuffer(payload, "<i8")
    parts = {
        spec.name: flat[begin // 8 : end // 8]
        for spec, begin, end in zip(
            schema.tensors, schema.offsets, schema.offsets[1:], strict=False
        )
    }
    return {
        column.name: Counts(parts[f"{column.name}.moments"], parts[f"{column.name}.histogram"])
        for column in statistics.columns
    }


def base_digest_of(schema: Schema) -> bytes:
    """The digest of the base of a job of statistics: zeros, which nobody has to fetch."""
    return schema.digest(bytes(schema.total_bytes))


def check_counts(statistics: Statistics, payload: Buffer, examples: int) -> None:
    """Raise UpdateRefused where one owner's counts cannot be those of so many examples.

    Counts that agree with each other may still be false, as any update may be.
    """
    for name, counts in counts_of(statistics, payload).items():
        if why := _why_not(counts, examples):
            raise UpdateRefused(f"the column {name} {why}", pb.REASON_WRONG_TENSORS)


def _why_not(counts: Counts, examples: int) -> str:
    count, total, squares = map(int, counts.moments)
    cells = counts.histogram
    half = STEPS // 2
    if not 0 <= count <= examples:
        return f"counts {count} of {examples} examples"
    if (cells < 0).any() or (cells > count).any() or int(cells.sum()) != count:
        return f"has a histogram that does not add up to its {count} examples"
    if abs(total) > count * half or not 0 <= squares <= min(MOST, count * half * half):
        return f"has a sum that {count} values within its range cannot have, or too large a one"
    if total * total > count * squares:
        return "has a negative variance"
    return ""


def statistics_to_pb(statistics: Statistics) -> pb.Statistics:
    return pb.Statistics(
        columns=[pb.Column(**vars(column)) for column in statistics.columns],
        min_cell=statistics.min_cell,
    )


def statistics_from_pb(message: pb.Statistics) -> Statistics:
    """Raises InvalidMessage for what cannot be counted."""
    if len(message.columns) > MAX_COLUMNS:  # before each of them becomes an object
        raise InvalidMessage(f"a job of statistics has 1 to {MAX_COLUMNS} columns")
    columns = tuple(Column(c.name, c.low, c.high, c.bins) for c in message.columns)
    statistics = Statistics(columns, message.min_cell)
    try:
        statistics.check()
    except ValueError as error:
        raise InvalidMessage(str(error)) from None
    return statistics


def statistics_in_words(statistics: Statistics) -> dict[str, object]:
    """What a job counts, as the ledger and files have it: low, high and bins of each column, by its name."""
    return {
        "min_cell": statistics.min_cell,
        "columns": {c.name: [c.low, c.high, c.bins] for c in statistics.columns},
    }


def statistics_from_words(words: Any) -> Statistics:
    """Read back what `statistics_in_words` wrote, which anybody may have written. Raises InvalidMessage."""
    try:
        columns = tuple(
            Column(name, float(low), float(high), operator.index(bins))
            for name, (low, high, bins) in words["columns"].items()
        )
        statistics = Statistics(columns, operator.index(words["min_cell"]))
        statistics.check()
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        raise InvalidMessage("what the job counts cannot be understood") from None
    return statistics
