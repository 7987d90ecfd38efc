"""How integers are added up without any error and their mean is rounded once. Pure.

The sum is exact and the mean is rounded to the nearest integer, ties to even. A bool is a 0 or a 1, so its mean is
true where more than half of the weight is true; a tie is false.

To stay exact within int64, a value x is kept as limbs: x = ... + limb1 * 2**22 + limb0, where all but the
highest are 0 to 2**22 - 1. A limb's sum is below 2**22 * total weight, and the total weight is at most
2**41 (1024 owners of the largest weight), so each sum stays below 2**63.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LIMBS = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 1, "I32": 2, "I64": 3}

_LIMB_BITS = 22
_LIMB_BASE = 1 << _LIMB_BITS


def add_integers(
    values: NDArray[Any], weight: int, sums: NDArray[np.int64], *, first: bool
) -> None:
    """Add weight * value to the limbs, a row each; a first update overwrites."""
    if first:
        sums.fill(0)
    rest = values.astype(np.int64)
    for limb in range(len(sums) - 1):
        sums[limb] += (rest & (_LIMB_BASE - 1)) * weight
        rest >>= _LIMB_BITS
    sums[-1] += rest * weight


def divide_integers(sums: NDArray[np.int64], total_weight: int) -> NDArray[np.int64]:
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
