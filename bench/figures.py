"""What a measurement is reported as: named values, sizes in megabytes of 10^6 bytes."""

from typing import Any

from bench.work import MEGABYTE

Figures = dict[str, Any]


def megabytes(count: int) -> float:
    return round(count / MEGABYTE, 1)
