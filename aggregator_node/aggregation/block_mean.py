"""The weighted mean of one block of elements, for rules that read all updates side by side. Pure.

It rounds as the mean does (`mean`), with the memory of one block: some 2 MiB, whatever the size of the model.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.exact_rounding import Rounding
from aggregator_node.aggregation.exact_sum import BLOCK, ExactSums
from aggregator_node.aggregation.integer_sums import LIMBS, add_integers, divide_integers
from cairn.model.schema import FLOATS

# The values of one update, how many significant bits each has at the most, and what they count.
Row = tuple[NDArray[Any], int, int]


class BlockMean:
    """Means of up to BLOCK elements, one block after the other, in memory of its own."""

    def __init__(self) -> None:
        self._level = np.empty(BLOCK)
        self._product = np.empty(BLOCK)
        self._sums = ExactSums(self._level)
        self._limbs = np.empty((max(LIMBS.values()), BLOCK), np.int64)
        self._rounding = Rounding()

    def write(self, rows: Iterable[Row], divisor: int, dtype: str, out: NDArray[Any]) -> None:
        """Write the sum of weight * values over the rows, of which there is at least one, divided by `divisor`.

        It is rounded once to the type of this name, which `out` has. Rows are of floating-point values of any
        type where this is one, and of integers where it is not.
        """
        if dtype not in FLOATS:
            self._write_integers(rows, divisor, dtype, out)
            return
        block = slice(0, len(out))
        if self._sums.carried_bytes:
            self._sums.erase()
        for number, (values, bits, weight) in enumerate(rows):
            self._sums.add(block, values, bits, weight, first=not number)
        self._rounding.nearest(*self._sums.read(block), divisor, dtype, out)

    def write_in_order(
        self,
        rows: Iterable[tuple[NDArray[Any], float]],
        divisor: int,
        dtype: str,
        out: NDArray[Any],
    ) -> None:
        """As `write`, of floating-point values and weights that are rounded themselves, in rows of both.

        Each product and each sum is rounded to binary64, row after row, so that the same rows in the same order give
        the same bits; an exact sum of such weights takes several times as long.
        """
        level, product = self._level[: len(out)], self._product[: len(out)]
        level.fill(0)
        for values, weight in rows:
            np.copyto(product, values)
            np.multiply(product, weight, out=product)
            np.add(level, product, out=level)
        self._rounding.nearest(level, None, divisor, dtype, out)

    def erase(self) -> None:
        """Overwrite what is left of the updates."""
        self._sums.erase()
        self._rounding.erase()
        self._level.fill(0)
        self._product.fill(0)
        self._limbs.fill(0)

    def _write_integers(
        self, rows: Iterable[Row], divisor: int, dtype: str, out: NDArray[Any]
    ) -> None:
        sums = self._limbs[: LIMBS[dtype], : len(out)]
        for number, (values, _, weight) in enumerate(rows):
            add_integers(values, weight, sums, first=not number)
        out[:] = divide_integers(sums, divisor)
