"""How an exact sum divided by a whole number is rounded, once, to a floating-point type. Pure.

To nearest, ties to even. The quotient is first divided in binary64 and cast, which is two roundings and
can end on the wrong side of a tie. Where that is possible the result is settled exactly:

- Level 0 alone is the sum. Rounding keeps order, so a quotient in binary64 that is above or below the
  middle of two neighbours of a narrower type stays there exactly; only one that is a middle is in doubt,
  and a middle has at most one bit more than the type. In F64 the division was the one rounding.
- There are levels below. The quotient is then a few units in its last place off: in doubt is where its
  two neighbourhoods would be cast to different values; in F64, where the remainder is half a unit or more.

In doubt, sum / weight is compared with the middle of the result and its neighbour on the side of the
quotient: the sign of 2 * sum - weight * result - weight * neighbour, all of whose terms are exact.

A sum of zero gives +0, and -0 only where every term was -0, as any order of IEEE 754 additions would.
"""

import math
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.exact_sum import BLOCK, Carry, Floats, exact_terms, normalise
from aggregator_node.aggregation.exponent_range import BINARY64_BITS
from cairn.model.validation import SIGNIFICANT_BITS

# What an infinity stands for: the first power of two beyond the range.
_BEYOND = {"F16": 2.0**16, "BF16": 2.0**128, "F32": 2.0**128, "F64": math.inf}
_KINDS: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_SLACK = 2.0**-50
_CLEARLY_BELOW = 0.99


class Rounding:
    """Divides and rounds, block by block, in scratch memory of its own."""

    def __init__(self) -> None:
        self._scratch = np.empty((2, BLOCK))

    def nearest(
        self, sums: Floats, carry: Carry | None, weight: int, dtype: str, out: NDArray[Any]
    ) -> None:
        """Write the sums of a block, divided by `weight`, to `out`, whose type is `dtype`.

        What leaves the range of the type becomes infinite, and what was not finite stays so.
        """
        quotients, work = self._scratch[:, : len(sums)]
        np.divide(sums, weight, out=quotients)
        places: NDArray[np.intp] = np.empty(0, np.intp)
        levels: list[Floats] = []
        if carry is not None:
            places, levels = carry.read()
            levels = normalise([sums[places], *levels])
            quotients[places] = levels[0] / weight
        cast(quotients, dtype, out)
        alone = _doubtful(sums, quotients, weight, dtype, work)
        if len(alone) and len(places):
            alone = np.setdiff1d(alone, places, assume_unique=True)
        if len(alone):
            out[alone] = _settle([sums[alone]], out[alone], weight, dtype)
        if len(places):
            chosen = _near_a_middle(levels, quotients[places], weight, dtype)
            places, levels = places[chosen], [level[chosen] for level in levels]
        if len(places):
            out[places] = _settle(levels, out[places], weight, dtype)

    def erase(self) -> None:
        self._scratch.fill(0)


def _doubtful(
    sums: Floats, quotients: Floats, weight: int, dtype: str, work: Floats
) -> NDArray[np.intp]:
    """Where a rounded quotient may be a middle without the exact quotient being one."""
    bits = SIGNIFICANT_BITS[dtype]
    if dtype == "F64" or weight & (weight - 1) == 0:
        return np.empty(0, np.intp)
    low_bits = work.view(np.int64)
    np.bitwise_and(quotients.view(np.int64), (1 << (52 - bits)) - 1, out=low_bits)
    middle = low_bits == 0
    if bits + 1 + weight.bit_length() <= BINARY64_BITS:  # then the product is exact
        middle &= np.multiply(quotients, weight, out=work) != sums
    places = np.flatnonzero(middle)
    doubtful: NDArray[np.intp] = places[quotients[places] != 0]
    return doubtful


def _near_a_middle(
    levels: list[Floats], quotients: Floats, weight: int, dtype: str
) -> NDArray[np.bool_]:
    """Where the quotient of these levels may be rounded to another value than the first one's was."""
    if dtype == "F64":
        rest = levels[0] + 0
        for terms in exact_terms(-quotients, BINARY64_BITS, weight, np.empty_like(rest)):
            rest += terms  # from the largest on: what is lost is below 2**-20 of what is left
        rest += levels[1]
        size = np.abs(quotients)
        # Towards zero: above a power of two it is twice as wide.
        step = size - np.nextafter(size, 0)
        return ~(np.abs(2 * rest) < _CLEARLY_BELOW * weight * step)
    low, high = np.empty((2, len(quotients)), _KINDS[dtype])
    cast(quotients * (1 - _SLACK), dtype, low)
    cast(quotients * (1 + _SLACK), dtype, high)
    different: NDArray[np.bool_] = low != high
    return different


def _settle(levels: list[Floats], means: NDArray[Any], weight: int, dtype: str) -> NDArray[Any]:
    """Move each mean to the neighbour that is nearest to the sum divided by `weight`."""
    twice = [2 * level for level in levels]
    bits_of_kind = np.dtype(f"i{means.itemsize}")
    moved = np.ones(len(means), np.bool_)
    while moved.any():
        products = _products(means, weight, dtype)
        side = np.sign(normalise([*levels, *products])[0])
        neighbours = np.nextafter(means, np.where(side > 0, np.inf, -np.inf).astype(means.dtype))
        middle = [*twice, *products, *_products(neighbours, weight, dtype)]
        beyond = side * np.sign(normalise(middle)[0])
        is_odd = (means.view(bits_of_kind) & 1) == 1
        moved = (beyond > 0) | ((beyond == 0) & (side != 0) & is_odd)
        means = np.where(moved, neighbours, means)
    return means


def _products(means: NDArray[Any], weight: int, dtype: str) -> list[Floats]:
    """Exact terms of -weight * mean."""
    values = -np.clip(means.astype(np.float64), -_BEYOND[dtype], _BEYOND[dtype])
    terms = exact_terms(values, SIGNIFICANT_BITS[dtype], weight, np.empty(len(values)))
    return list(terms)


def cast(values: Floats, dtype: str, out: NDArray[Any]) -> None:
    """Round binary64 once to the type of this name, which `out` has."""
    np.copyto(out, _to_odd(values) if dtype == "BF16" else values, casting="same_kind")


def _to_odd(values: Floats) -> NDArray[np.float32]:
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
