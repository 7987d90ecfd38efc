"""How accepted updates become an average: the arithmetic of RULE_MEAN, type by type. Pure.

The mean of an element is the sum of weight * value over the updates, divided by the sum of the weights.

F16, BF16, F32, F64: the sum is kept in binary64, one update after the other, in the order of the calls
of `Mean.add`; it is divided in binary64 and that quotient is rounded once to the tensor's type, to
nearest, ties to even. A product of a weight below 2**29 and a value of at most 24 significant bits (F16,
BF16, F32) fits the 53 bits of binary64, so it is exact; a larger weight, or an F64 value, rounds the
product once. Every step is one IEEE 754 operation on one element, so the same updates in the same order
give the same bits on every machine and with any number of threads. The caller adds in the order of the
owners' names, which makes the order of arrival irrelevant. Zero keeps its sign where all updates agree.

I8, I16, I32, I64, U8, BOOL: the sum is exact and the mean is rounded to the nearest integer, ties to even.
A bool is a 0 or a 1, so its mean is true where more than half of the weight is true; a tie is false.
To stay exact within int64, a value x is kept as limbs: x = ... + limb1 * 2**22 + limb0, where all but the
highest are 0 to 2**22 - 1. A limb's sum is below 2**22 * total weight, and the total weight is at most
2**41 (1024 owners of the largest weight), so each sum stays below 2**63.

Metrics: the exact weighted mean, rounded once to binary64.

Memory: the sums (8 bytes an element; 16 for I32, 24 for I64) and a few blocks of 512 KiB.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cairn.errors import TooMuch, UpdateRefused, WrongState
from cairn.tensors import FLOATS, Buffer, Schema
from cairn.v1 import round_pb2 as pb
from cairn.values import BLOCK, check_length, runs_of

MAX_WEIGHT = 2**31 - 1
MAX_TOTAL_WEIGHT = 2**41

_LIMB_BITS = 22
_LIMB_BASE = 1 << _LIMB_BITS
_LIMBS = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 1, "I32": 2, "I64": 3}


class Mean:
    """The weighted mean of the updates added so far, all of one schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._total_weight = 0
        self._runs = tuple(runs_of(schema))
        # The first update overwrites the sums of floats, so a mean of negative zeros is one as well.
        self._sums: tuple[NDArray[Any], ...] = tuple(
            np.empty(run.count)
            if run.dtype in FLOATS
            else np.zeros((_LIMBS[run.dtype], run.count), np.int64)
            for run in self._runs
        )
        self._scratch = np.empty(BLOCK)

    def add(self, payload: Buffer, weight: int) -> None:
        """Add one complete update that `check_values` has passed; it counts `weight` times.

        Raises UpdateRefused for another length or a weight outside 1 to `MAX_WEIGHT`, and TooMuch
        where all weights together exceed `MAX_TOTAL_WEIGHT`; the sums are then as before.
        """
        check_length(self._schema, payload)
        if not 1 <= weight <= MAX_WEIGHT:
            raise UpdateRefused(f"a weight is 1 to {MAX_WEIGHT}", pb.REASON_EXAMPLES_REFUSED)
        if self._total_weight + weight > MAX_TOTAL_WEIGHT:
            raise TooMuch(f"the weights of a round add up to {MAX_TOTAL_WEIGHT} at the most")
        for run, sums in zip(self._runs, self._sums, strict=True):
            values = run.values(payload)
            for block in run.blocks():
                if run.dtype in FLOATS:
                    self._add_floats(values[block], weight, sums[block])
                else:
                    _add_integers(values[block], weight, sums[:, block])
        self._total_weight += weight

    def result(self, out: bytearray | memoryview) -> None:
        """Write the mean into `out`, which has the size of the payload.

        Raises WrongState where nothing was added, and TooMuch where a mean left the range of binary64,
        which only F64 can do; what is in `out` is then of no use.
        """
        if not self._total_weight:
            raise WrongState("there is no mean of no update")
        for run, sums in zip(self._runs, self._sums, strict=True):
            means = run.values(out)
            for block in run.blocks():
                if run.dtype in FLOATS:
                    mean = np.divide(
                        sums[block], self._total_weight, out=self._scratch[: len(sums[block])]
                    )
                    if not (good := np.isfinite(mean)).all():
                        name = run.tensor_name(self._schema, block.start + int(good.argmin()))
                        raise TooMuch(f"the sum of tensor {name} exceeds the range of binary64")
                    means[block] = _to_odd(mean) if run.dtype == "BF16" else mean
                else:
                    means[block] = _divide_integers(sums[:, block], self._total_weight)

    def _add_floats(self, values: NDArray[Any], weight: int, sums: NDArray[np.float64]) -> None:
        is_first = not self._total_weight
        terms = sums if is_first else self._scratch[: len(values)]
        # What overflows here stays infinite or NaN, and `result` refuses it by name.
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(terms, values)
            if weight != 1:
                terms *= weight
            if not is_first:
                sums += terms


def average_metrics(reports: Sequence[tuple[Mapping[str, float], int]]) -> dict[str, float]:
    """The weighted mean of each metric that every report has, by name; every value is finite.

    A metric that one report lacks is left out: its mean would be over fewer owners than were counted.
    """
    if not reports:
        return {}
    shared = set.intersection(*(set(metrics) for metrics, _ in reports))
    total = sum(weight for _, weight in reports)
    return {
        name: float(sum(Fraction(metrics[name]) * weight for metrics, weight in reports) / total)
        for name in sorted(shared)
    }


def _to_odd(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round to binary32, and where that is inexact, to the neighbour whose last bit is 1.

    ml_dtypes rounds binary64 to bfloat16 by way of binary32. Rounding to nearest twice can end one
    step off; after rounding to odd the second rounding sees on which side of a tie the value was, and
    the result is that of one rounding (Boldo and Melquiond 2008, doi 10.1109/TC.2007.70819).
    """
    rounded = values.astype(np.float32)
    bits = rounded.view(np.int32)
    bits -= np.abs(rounded) > np.abs(values)  # one step towards zero: the value, truncated
    bits |= rounded != values
    return rounded


def _add_integers(values: NDArray[Any], weight: int, sums: NDArray[np.int64]) -> None:
    rest = values.astype(np.int64)
    for limb in range(len(sums) - 1):
        sums[limb] += (rest & (_LIMB_BASE - 1)) * weight
        rest >>= _LIMB_BITS
    sums[-1] += rest * weight


def _divide_integers(sums: NDArray[np.int64], total_weight: int) -> NDArray[np.int64]:
    """Divide by hand, limb by limb from the highest, so that no step leaves int64."""
    limbs = sums.copy()
    for limb in range(len(limbs) - 1):
        limbs[limb + 1] += limbs[limb] >> _LIMB_BITS
        limbs[limb] &= _LIMB_BASE - 1
    quotient = np.zeros(limbs.shape[1], np.int64)
    remainder = np.zeros(limbs.shape[1], np.int64)
    for sum_of_limb in limbs[::-1]:
        digit, remainder = np.divmod(remainder * _LIMB_BASE + sum_of_limb, total_weight)
        quotient = quotient * _LIMB_BASE + digit
    twice = 2 * remainder
    quotient += (twice > total_weight) | ((twice == total_weight) & (quotient % 2 == 1))
    return quotient
