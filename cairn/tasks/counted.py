"""Decides which numbers of a task may count: how many examples it has, and the metrics that it returned."""

import math
import operator
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cairn.protocol.limits import MAX_EXAMPLES, MAX_METRIC_NAME_BYTES, MAX_METRICS
from cairn.tasks.loader import TaskFailed
from cairn.v1 import round_pb2 as pb


def checked_examples(field: str, value: Any) -> int:
    """This field of the task's `Data` as a number of examples. Raises TaskFailed where it is none."""
    try:
        examples = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        examples = 0
    if not 1 <= examples <= MAX_EXAMPLES:
        raise TaskFailed(
            f"the task's data has {field} = {value!r}, expected a whole number from 1 to"
            f" {MAX_EXAMPLES}: pass it as cairn.Data(..., {field}=...)",
            pb.REASON_EXAMPLES_REFUSED,
        )
    return examples


def checked_metrics(part: str, returned: Any) -> dict[str, float]:
    """What this function of the task returned, as scalars by name, without those that are not finite. Raises TaskFailed."""
    if returned is None:
        return {}
    if not isinstance(returned, Mapping):
        raise TaskFailed(
            f"the task's {part} returned {type(returned).__name__}, expected scalars by name"
        )
    if len(returned) > MAX_METRICS:
        raise TaskFailed(f"the task's {part} returned more than {MAX_METRICS} metrics")
    metrics = {_metric_name(name): _metric_value(name, value) for name, value in returned.items()}
    for name, value in metrics.items():
        if not math.isfinite(value):
            print(f"the metric {name} is {value} and is left out", file=sys.stderr)  # noqa: T201  the owner's console
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _metric_name(name: Any) -> str:
    if isinstance(name, str):
        with suppress(UnicodeEncodeError):  # half a surrogate pair is no text
            if 1 <= len(name.encode()) <= MAX_METRIC_NAME_BYTES:
                return name
    raise TaskFailed(f"a metric is called {name!r}, expected 1 to {MAX_METRIC_NAME_BYTES} bytes")


def _metric_value(name: Any, value: Any) -> float:
    # Scalars of PyTorch and NumPy have no dimension and know their Python value.
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    try:
        if isinstance(number, int | float):
            return float(number)
    except OverflowError:
        return math.inf
    raise TaskFailed(f"the metric {name} is of type {type(value).__name__}, expected a number")
