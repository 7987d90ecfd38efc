"""The geometric median, or RFA: RULE_GEOMETRIC_MEDIAN. Pure.

The point from which the distances to all updates add up to the least, by the smoothed Weiszfeld algorithm (Pillutla,
Kakade and Harchaoui 2022, arXiv:1912.13445, algorithm 2): from the mean on, `iterations` times

    z = sum of b_i * x_i / sum of b_i,    b_i = 1 / max(smoothing, |x_i - z|).

Integers and bools, which are in no distance, are averaged with the same weights.

Averages over the floor at least: in the end the weights are capped so that none is above one part in the floor
(`weighted_updates.capped`). Without that, an update that lies at the median could have nearly all of the weight, and
would be released. The cap changes the result only then.

Memory and time: what `distances` says, iterations * n**2 operations, and the mean of n updates (`held_updates`).

Fewer than half of the owners move it no farther than a multiple of the spread of the others, given enough iterations:
from the mean on, each iteration leaves about a / (1 - a) of what a share a of far colluders moves it, so a third of them needs
20 iterations for each factor of a million. t colluders can place themselves so that one honest owner lies at the
median, and so has the largest weight: one part in the floor, and no more. They know their own updates; to them the result
is a mean of the others in which that owner's part is at most one in floor - t.
"""

import math
from collections.abc import Sequence

from aggregator_node.aggregation.weighted_updates import (
    WeightedUpdates,
    capped,
    squared_distances_from_mean,
)


class GeometricMedian(WeightedUpdates):
    """The mean of the updates with weights that fall with the distance from it."""

    def _weigh(self, distances: list[list[float]]) -> list[int]:
        numbers = self._aggregation
        weights = weiszfeld(
            distances, numbers.whole_number("iterations"), numbers.rule_numbers["smoothing"]
        )
        return capped(weights, self._floor)


def weiszfeld(
    distances: Sequence[Sequence[float]], iterations: int, smoothing: float
) -> list[float]:
    """The weights of the updates in their geometric median; they add up to 1."""
    weights = [1 / len(distances)] * len(distances)
    for _ in range(iterations):
        apart = squared_distances_from_mean(distances, weights)
        inverse = [1 / max(smoothing, math.sqrt(each)) for each in apart]
        total = math.fsum(inverse)
        weights = [each / total for each in inverse]
    return weights
