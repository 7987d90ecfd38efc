"""Decides how much an update counts at the most, so that no owner determines an average alone. Pure.

The weights of a round are capped: an update counts min(weight, cap). The cap is the largest whole number with
which no update has more than `share` of the total weight. A share of one half means less than half: with
exactly half, an owner's 0 would make every mean of bools false. With so few updates that no cap does it, no
more than 1 / share of them, the cap is the least weight: all count the same.

The cap is known once all updates have come, but only the heaviest updates can be above it, at most
`most_capped` of them: if k updates are above a cap that cannot be raised, k * share < 1. Only these are held
back, and only until the others' weights settle that they are not: more updates can only raise the cap.
"""

from bisect import bisect_left
from collections.abc import Collection, Mapping
from fractions import Fraction

_HALF = Fraction(1, 2)


class LargestShare:
    """The largest share of the total weight that one update may have: above 0 and at most one half."""

    def __init__(self, share: float) -> None:
        self._share = Fraction(share)

    @property
    def most_capped(self) -> int:
        """How many updates of one round can be above its cap."""
        return -int(-1 // self._share) - 1

    def cap(self, weights: Collection[int]) -> int:
        """The cap for the updates of these weights, of which there is at least one."""
        return self._highest(weights) or min(weights)

    def may_cap(self, least: int, most: int, count: int) -> bool:
        """Whether `count` or more updates of weights from `least` to `most` can need a cap."""
        worst = [most, *[least] * (count - 1)]
        return least != most and not self._is_kept(worst, most)

    def undecided(self, weights: Mapping[str, int]) -> list[str]:
        """Whose weights, of those given in the order of arrival, may turn out to be above the cap.

        Whoever is not among them never will be, whatever comes.
        """
        settled = self._highest(weights.values())
        heaviest = sorted(weights, key=weights.__getitem__, reverse=True)[: self.most_capped]
        return [name for name in heaviest if weights[name] > settled]

    def _highest(self, weights: Collection[int]) -> int:
        """The highest cap that keeps every update within the share; 0 if there is none."""
        caps = range(1, max(weights) + 1)
        return bisect_left(caps, True, key=lambda cap: not self._is_kept(weights, cap))

    def _is_kept(self, weights: Collection[int], cap: int) -> bool:
        """Whether no update has more than the share. What a cap keeps, every lower one does as well."""
        heaviest = min(max(weights), cap) * self._share.denominator
        allowed = sum(min(weight, cap) for weight in weights) * self._share.numerator
        return heaviest < allowed if self._share == _HALF else heaviest <= allowed
