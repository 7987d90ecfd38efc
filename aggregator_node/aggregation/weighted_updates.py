"""What the rules of distances share: how updates lie to one another decides what each counts. Pure.

Multi-Krum, the geometric median and centred clipping all end in a weighted mean of the updates, and of the base
for the last. All they need to know to find the weights is how far each two updates lie apart: one pass over the updates
(`distances`). The square of the distance between a point z = sum of w_j * x_j, whose weights add up to 1, and an update x_i is

    sum of w_j * D_ij - (sum of w_j * w_k * D_jk) / 2,    D_ij = |x_i - x_j|**2,

so that no such point is ever made. The weights are found in binary64 by operations whose order is fixed (`math.fsum` for
sums) and rounded down to a few bits. Where all that count have the same, the mean is exact; otherwise it is added up in
binary64 in the order of the round. Either is rounded once to the tensor's type.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from aggregator_node.aggregation.distances import squared_distances
from aggregator_node.aggregation.held_updates import HeldUpdates
from aggregator_node.aggregation.rule import ReadBlock
from aggregator_node.aggregation.weight_caps import LargestShare
from cairn.model.schema import FLOATS, Schema
from cairn.protocol.aggregation import Aggregation

_WEIGHT_BITS = 30  # of the largest weight, as a whole number: more than a binary32 has


class WeightedUpdates(HeldUpdates):
    """A rule that weighs whole updates by the distances between them."""

    def __init__(self, schema: Schema, aggregation: Aggregation, floor: int) -> None:
        super().__init__(schema, aggregation, floor)
        self._weights: list[float] = []
        self._divisor = 1

    def reset(self) -> None:
        super().reset()
        self._weights.clear()

    @abstractmethod
    def _weigh(self, distances: list[list[float]]) -> Sequence[float]:
        """What each point counts, and 0 for none, by the squared distances; they add up to a whole number.

        Where integers are combined with them, so is each.
        """

    def _look(self) -> None:
        self._weights = list(self._weigh(squared_distances(self._runs, self._points())))
        self._divisor = round(math.fsum(self._weights))

    def _points(self) -> list[ReadBlock]:
        """Between which the distances are."""
        return self._reads

    def _combine(self, number: int, block: slice, dtype: str, out: NDArray[Any]) -> None:
        points = [
            (read, weight)
            for read, weight in zip(self._points(), self._weights, strict=True)
            if weight
        ]
        if len({weight for _, weight in points}) == 1:
            rows = ((*read(number, block), 1) for read, _ in points)
            self._mean.write(rows, len(points), dtype, out)
        elif dtype in FLOATS:
            parts = ((read(number, block)[0], weight) for read, weight in points)
            self._mean.write_in_order(parts, self._divisor, dtype, out)
        else:
            rows = ((*read(number, block), int(weight)) for read, weight in points)
            self._mean.write(rows, self._divisor, dtype, out)


def squared_distances_from_mean(
    distances: Sequence[Sequence[float]], weights: Sequence[float]
) -> list[float]:
    """The squared distance of each point from their mean with these weights, which add up to 1; never below 0."""
    to_points = [
        math.fsum(weight * distance for weight, distance in zip(weights, row, strict=True))
        for row in distances
    ]
    half = math.fsum(weight * to for weight, to in zip(weights, to_points, strict=True)) / 2
    return [max(0.0, to - half) for to in to_points]


def capped(weights: Sequence[float], floor: int) -> list[int]:
    """Whole numbers in proportion to the weights, of which none is more than one part in `floor` of their sum.

    What is above the cap (`highest_cap`) is lowered to it. They are rounded down, so that an update that lies far away and weighs little does not weigh more for
    it; at least `floor` of them stay above 0.
    """
    cap = highest_cap(weights, floor)
    unit = 2.0**_WEIGHT_BITS / cap
    whole = [int(min(weight, cap) * unit) for weight in weights]
    exact = LargestShare(1 / floor).cap([weight for weight in whole if weight])
    return [min(weight, exact) for weight in whole]


def highest_cap(weights: Sequence[float], floor: int) -> float:
    """To what weights must be lowered so that none is more than one part in `floor` of their sum.

    There are `floor` weights at least, and all are above 0.
    """
    ordered = sorted(weights, reverse=True)
    for lowered in range(floor):
        # If exactly so many are lowered to it, lowered * cap + rest = floor * cap.
        cap = min(ordered[0], math.fsum(ordered[lowered:]) / (floor - lowered))
        if cap >= ordered[lowered]:
            break
    return cap
