"""Sorts many short columns at once: the values of one element in all updates. Pure.

A sorting network compares rows of a block, whole rows at a time, in an order that depends on their number
alone. This one is Batcher's merge exchange (1968; Knuth, The Art of Computer Programming, volume 3, algorithm 5.2.2M), of
about n * log2(n)**2 / 4 comparisons: 19 for 8 rows, 63 for 16. Minimum and maximum are exact, so every machine has the
same values. Which of -0.0 and +0.0 comes first is left open; a release has no negative zeros.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


def sort_columns(rows: NDArray[Any]) -> list[NDArray[Any]]:
    """Sort each column of all rows but the last, which is scratch memory; there are at least two.

    Returns the rows in ascending order: parts of the same memory, in another order than before.
    """
    *ordered, spare = rows
    for low, high in _comparisons(len(ordered)):
        np.minimum(ordered[low], ordered[high], out=spare)
        np.maximum(ordered[low], ordered[high], out=ordered[high])
        ordered[low], spare = spare, ordered[low]
    return ordered


@lru_cache(maxsize=8)
def _comparisons(count: int) -> tuple[tuple[int, int], ...]:
    return tuple(_merge_exchange(count))


def _merge_exchange(count: int) -> Iterator[tuple[int, int]]:
    """The pairs that Batcher's algorithm compares, the lower place first."""
    highest = 1 << max(count - 1, 0).bit_length() >> 1
    p = highest
    while p:
        q, r, distance = highest, 0, p
        while True:
            for place in range(count - distance):
                if place & p == r:
                    yield place, place + distance
            if q == p:
                break
            distance, q, r = q - p, q >> 1, p
        p >>= 1
