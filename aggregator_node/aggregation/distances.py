"""How far updates lie from one another and from the base, over all floating-point elements. Pure.

Squared Euclidean distances. Each is a sum of squares that is made of subtractions, multiplications and additions of whole
arrays, always in the same order, and of `math.fsum` at the end: no product of matrices and no sum along an axis, which every
processor's library adds up in an order of its own. So the same updates have the same distances to the bit on every machine.

Elements of F64 tensors are subtracted and squared in binary64, those of all others in binary32, which takes half the
time. There up to 1024 squares are added, by halves, and all these sums in binary64. So a distance is good to six digits at
least. In binary32 a difference above 1.8e19 counts as infinite, and one below 1e-22 as nothing.

Integers and bools have no part in them: a counter of batches would outweigh every weight of a model.

A sum that leaves the range counts as 2**900: as far as anything.

Memory: 40 bytes for each pair of updates, or 1 MiB if that is more, and some 4 MiB of blocks. Time: one pass over all updates, of
3 operations for each pair of them and element.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.exact_sum import BLOCK, Floats
from aggregator_node.aggregation.released import DELTAS, blocks
from aggregator_node.aggregation.rule import ReadBlock
from cairn.model.schema import FLOATS
from cairn.model.validation import SIGNIFICANT_BITS, DtypeBlock
from cairn.runtime.buffer import Buffer

FARTHEST = 2.0**900

_ReadOfRun = Callable[[slice], tuple[NDArray[Any], int]]

_LONGEST, _SHORTEST = 1 << 14, 1 << 10  # elements of each update that are compared at once,
_COMPARED = 1 << 18  # and of all together, unless there are very many
_KEPT = 1 << 17  # sums in all that are kept apart until the end


def squared_distances(runs: Sequence[DtypeBlock], reads: Sequence[ReadBlock]) -> list[list[float]]:
    """The squared distance of each two of the updates; a row and a column for each."""
    count = len(reads)
    sums = np.zeros((count, count, _power_of_two(_KEPT // (count * count), 1, _SHORTEST)))
    with np.errstate(all="ignore"):  # what leaves the range is far away, and a NaN as well
        for number, run in enumerate(runs):
            if run.dtype in FLOATS:
                _add_run(sums, run, [partial(read, number) for read in reads])
    distances = [[0.0] * count for _ in reads]
    for i in range(count):
        for j in range(i + 1, count):
            distances[i][j] = distances[j][i] = _total(sums[i, j])
    return distances


def _add_run(sums: Floats, run: DtypeBlock, reads: Sequence[_ReadOfRun]) -> None:
    """Add the squares of one run's differences: of each two updates to a few sums of their own."""
    count = len(reads)
    length = _power_of_two(_COMPARED // count, _SHORTEST, _LONGEST)
    kind = np.float64 if run.dtype == "F64" else np.float32
    points, squares = np.empty((2, count, length), kind)
    for block in blocks(run.count):
        values = [read(block)[0] for read in reads]
        for part in blocks(block.stop - block.start, length):
            for point, value in zip(points, values, strict=True):
                point[: part.stop - part.start] = value[part]
                point[part.stop - part.start :] = 0
            for i in range(count - 1):
                rest = np.subtract(points[i + 1 :], points[i], out=squares[i + 1 :])
                np.multiply(rest, rest, out=rest)
                sums[i, i + 1 :] += _folded(rest, sums.shape[2])
    points.fill(0)  # they are the updates' own values
    squares.fill(0)


def squared_distance(runs: Sequence[DtypeBlock], read: ReadBlock, origin: ReadBlock) -> float:
    """The squared distance of one update from one point."""
    sums = np.zeros(_SHORTEST)
    square = np.zeros(BLOCK)
    with np.errstate(all="ignore"):
        for number, run in enumerate(runs):
            if run.dtype not in FLOATS:
                continue
            for block in blocks(run.count):
                part = square[: block.stop - block.start]
                np.copyto(part, read(number, block)[0])
                np.subtract(part, origin(number, block)[0], out=part)
                np.multiply(part, part, out=part)
                square[len(part) :].fill(0)
                sums += _folded(square[None], _SHORTEST)[0]
    square.fill(0)
    return _total(sums)


def origin_of(runs: Sequence[DtypeBlock], base: Buffer | None, *, are_deltas: bool) -> ReadBlock:
    """Reads the point that updates are measured from as if it were one of them: the base, and zero for deltas and gradients."""
    zeros = np.zeros(BLOCK)

    def read(number: int, block: slice) -> tuple[NDArray[Any], int]:
        run = runs[number]
        if base is None or (are_deltas and run.dtype in DELTAS):
            return zeros[: block.stop - block.start], 1
        return run.values(base)[block], SIGNIFICANT_BITS.get(run.dtype, 0)

    return read


def _power_of_two(at_most: int, low: int, high: int) -> int:
    """The largest power of two that is no more, from `low` to `high`, which are some."""
    return min(high, max(low, 1 << at_most.bit_length() >> 1))


def _folded(squares: NDArray[Any], width: int) -> NDArray[Any]:
    """Add the second half of each row to the first, in place, until rows are so short."""
    while squares.shape[1] > width:
        half = squares.shape[1] // 2
        squares = np.add(squares[:, :half], squares[:, half:], out=squares[:, :half])
    return squares


def _total(sums: Floats) -> float:
    """The exact sum, rounded once; the farthest where a part is infinite or none."""
    try:
        return min(FARTHEST, math.fsum(sums.tolist()))
    except OverflowError:
        return FARTHEST
