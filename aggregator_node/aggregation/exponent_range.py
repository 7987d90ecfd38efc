"""How far apart the values of a block are: what shows, without a look at each sum, that none was rounded. Pure.

A binary64 number holds every multiple of 2**low up to 2**(low + 53). So where all terms of a sum are such
multiples, and their magnitudes add up to no more, the sum and all that it was on its way are exact, in any
order. The values of trained weights are that close together, nearly always: then the look at the values,
as integers of their own width, takes the place of six operations in binary64 on every sum.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BINARY64_BITS = 53


class _Format(NamedTuple):
    """A floating-point type: integers of its width, the bits of its fraction, the bias of its exponent."""

    integers: np.dtype[Any]
    fraction: int
    bias: int


_FORMATS = {
    "float16": _Format(np.dtype(np.uint16), 10, 15),
    "bfloat16": _Format(np.dtype(np.uint16), 7, 127),
    "float32": _Format(np.dtype(np.uint32), 23, 127),
    "float64": _Format(np.dtype(np.uint64), 52, 1023),
}
_HIGHEST_LOW = 900  # what is a multiple of a higher power of two is one of this; and zero is of any


class ExponentRange(NamedTuple):
    """Each of some values is a multiple of 2**low, and no magnitude is above `high`."""

    low: int
    high: float

    def weighted(self, weight: int) -> "ExponentRange":
        """That of the values times a whole number, also where each product is cut into parts of its sign."""
        return ExponentRange(self.low, math.nextafter(self.high * weight, math.inf))

    def plus(self, other: "ExponentRange") -> "ExponentRange":
        """That of the sums of such values and of such others, rounded or not."""
        high = math.nextafter(self.high + other.high, math.inf)
        return ExponentRange(min(self.low, other.low), high)

    @property
    def is_exact(self) -> bool:
        """Whether binary64 has all such numbers."""
        return self.high <= 2.0 ** (self.low + BINARY64_BITS)


def spread_of(values: NDArray[Any], bits: int, scratch: NDArray[np.uint64]) -> ExponentRange:
    """The spread of one or more floating-point values, of at most `bits` significant bits each.

    `scratch` has at least as many elements. Of an infinity, a NaN or a value of the highest exponent
    `high` is infinite.
    """
    kind = _FORMATS[values.dtype.name]
    magnitudes = scratch.view(kind.integers)[: len(values)]
    all_but_sign = kind.integers.type((1 << 8 * kind.integers.itemsize - 1) - 1)
    np.bitwise_and(values.view(kind.integers), all_but_sign, out=magnitudes)
    largest = int(magnitudes.max()) >> kind.fraction
    # One less, so that zero, which is a multiple of anything, comes last.
    np.subtract(magnitudes, kind.integers.type(1), out=magnitudes)
    smallest = (int(magnitudes.min()) + 1) >> kind.fraction
    # An exponent of 0 is that of numbers below the smallest normal one, whose last bit is as small as its.
    low = smallest - min(bits - 1, kind.fraction) if smallest else 1 - kind.fraction
    high = math.inf if largest >= 2 * kind.bias else 2.0 ** (max(largest, 1) + 1 - kind.bias)
    return ExponentRange(min(low - kind.bias, _HIGHEST_LOW), high)
