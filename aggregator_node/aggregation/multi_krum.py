"""Multi-Krum: RULE_MULTI_KRUM. Pure.

Of n updates, of which up to f (`byzantine`) may be anything, each has a score: the sum of its squared
distances to the n - f - 2 others that are nearest to it. The result is the mean of the m (`select`) updates of the lowest scores
(Blanchard et al. 2017, arXiv:1703.02757, sections 3 and 5). Between equal scores the update is taken that comes first in the order of
the names of owners. There is a result from n = 2 * f + 3 on. Integers and bools are averaged over the same m updates.

Averages over m owners: the result is their plain mean. Krum itself, with m = 1, would release one owner's update.

Memory and time: what `distances` says, and the mean of m updates (`held_updates`).

For f colluders the paper bounds how far the selected lie from the honest mean, where n > 2 * f + 2. t colluders that
are all among the selected know their own part, so to them the result is the mean of m - t others; they can be among them if
they send what lies between the others, and then they decide t / m of the result.
"""

import math
from collections.abc import Sequence

from aggregator_node.aggregation.weighted_updates import WeightedUpdates


class MultiKrum(WeightedUpdates):
    """The mean of the updates that lie nearest to most others."""

    def _weigh(self, distances: list[list[float]]) -> list[int]:
        numbers = self._aggregation
        chosen = selected(
            distances, numbers.whole_number("byzantine"), numbers.whole_number("select")
        )
        return [int(number in chosen) for number in range(len(distances))]


def selected(distances: Sequence[Sequence[float]], byzantine: int, select: int) -> set[int]:
    """Which updates have the lowest scores, by their numbers."""
    count = len(distances)
    scores = [
        math.fsum(sorted(row[:number] + row[number + 1 :])[: count - byzantine - 2])
        for number, row in enumerate(map(list, distances))
    ]
    return set(sorted(range(count), key=scores.__getitem__)[:select])
