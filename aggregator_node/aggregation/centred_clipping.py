"""Centred clipping: RULE_CENTRED_CLIPPING. Pure.

From a centre v, which is the round's base, and zero for gradients, `iterations` times

    v = v + (sum of (x_i - v) * min(1, norm / |x_i - v|)) / n

(Karimireddy, He and Jaggi 2021, arXiv:2012.10333, algorithm 2, whose centre is the last aggregate). One iteration without
momentum is the mean of clipped updates. v is always a mean of the updates and the base with weights that add up to 1; these are
found by the distances alone (`weighted_updates`) and rounded down to 30 bits: what an owner loses so, less than 2**-29 of
its weight, the base has. Where nothing is clipped, one iteration is the mean to the bit. Integers and bools, which nothing
clips, are averaged over all owners equally.

Averages over the floor at least: weights are lowered so that no owner has more than one part in the floor of all owners'
weights (`weighted_updates.highest_cap`); the base has the rest. It is known, so it hides nobody. The paper has no such cap. It
is reached where all but a few updates are far beyond the norm: of one iteration on a model that moves one owner little and all
others far, nearly that owner's update alone would be left. No owner's weight becomes nothing, however small the norm is.

Memory and time: what `distances` says for n + 1 points, iterations * n**2 operations, and the mean of n updates
and the base (`held_updates`).

t colluders move one iteration's result by t / n * norm at most, wherever they are: to be far off does not help them.
They know their own part, so to them it is the mean of the other n - t. What they cannot do is have one honest owner weigh
more: its weight is 1 / n where it is not clipped, and with more iterations one part in the floor at the most, however
far off the others are.
"""

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from aggregator_node.aggregation.distances import origin_of
from aggregator_node.aggregation.rule import ReadBlock
from aggregator_node.aggregation.weighted_updates import (
    WeightedUpdates,
    highest_cap,
    squared_distances_from_mean,
)
from cairn.model.schema import FLOATS

_BITS = 30  # of a weight: more than a binary32 has
_SLACK = (
    1 + 2.0**-40
)  # above what the weights are off for being rounded: 1 / n is to stay what it is


class CentredClipping(WeightedUpdates):
    """The base moved by the mean of the updates' clipped distances from it."""

    def _points(self) -> list[ReadBlock]:
        return [*self._reads, self._origin()]

    def _weigh(self, distances: list[list[float]]) -> list[float]:
        """An owner whose update is not clipped counts 1, in one iteration, and all points as many as there are owners."""
        numbers, count = self._aggregation, len(self._reads)
        weights = clipped(
            distances, numbers.rule_numbers["norm"], numbers.whole_number("iterations")
        )
        scaled = [each * count * _SLACK for each in weights[:-1]]
        cap = highest_cap(scaled, self._floor)
        owners = [_rounded_down(min(each, cap)) for each in scaled]
        return [*owners, max(0.0, count - math.fsum(owners))]

    def _combine(self, number: int, block: slice, dtype: str, out: NDArray[Any]) -> None:
        if self._runs[number].dtype in FLOATS:
            super()._combine(number, block, dtype, out)
        else:
            rows = ((*read(number, block), 1) for read in self._reads)
            self._mean.write(rows, len(self._reads), dtype, out)

    def _origin(self) -> ReadBlock:
        return origin_of(self._runs, self._base, are_deltas=self._are_deltas)


def clipped(distances: Sequence[Sequence[float]], norm: float, iterations: int) -> list[float]:
    """The weights of the updates, and last of the centre, after so many iterations; they add up to 1."""
    count = len(distances) - 1
    weights = [0.0] * count + [1.0]
    for _ in range(iterations):
        apart = squared_distances_from_mean(distances, weights)[:count]
        steps = [min(1.0, norm / math.sqrt(each)) / count if each else 1 / count for each in apart]
        left = max(0.0, 1 - math.fsum(steps))
        weights = [weight * left for weight in weights]
        weights[:count] = [a + b for a, b in zip(weights[:count], steps, strict=True)]
    return weights


def _rounded_down(weight: float) -> float:
    """To `_BITS` significant bits, so that what is above 0 stays so."""
    mantissa, exponent = math.frexp(weight)
    return math.ldexp(int(mantissa * 2**_BITS), exponent - _BITS)
