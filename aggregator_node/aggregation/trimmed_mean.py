"""The coordinate-wise trimmed mean: RULE_TRIMMED_MEAN. Pure.

Of the n values of an element, the b = floor(trim * n) smallest and the b largest are left out; the result is the mean of
the others (Yin et al. 2018, arXiv:1803.01498, definition 2). It is exact and rounded once to the tensor's type; integers and
bools as well. So it has no order.

Averages over n - 2 * b owners: every element is the mean of so many values of different owners. Which owners these are
differs from element to element, and nobody is told. But elements that depend on one another tell: if one is another's q plus M
times a third's r, and M is large, it is trimmed as the third is, and so all of a model made for this together tell the mean of
q over many subsets of owners, and by these every owner's q. The floor holds for each element, and not for what several say.

Memory: what `held_updates` says. Time: n * log2(n)**2 / 2 passes over the model for the sorting network, beside the mean's.

Up to b owners who send anything at all cannot move an element beyond the values of the others. t colluders know
which of their own values were kept, so to them a result is the mean of n - 2 * b - t others at the least; with values at
both ends, which are sure to be left out, they have others' extremes kept that would have been left out, but no more weight
for these.
"""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from aggregator_node.aggregation.sorted_updates import SortedUpdates
from cairn.protocol.aggregation import trimmed


class TrimmedMean(SortedUpdates):
    """The mean of each element without its extremes."""

    def _combine_rows(
        self, rows: Sequence[NDArray[Any]], bits: int, dtype: str, out: NDArray[Any]
    ) -> None:
        left_out = trimmed(self._aggregation.rule_numbers["trim"], len(rows))
        self._write_middle(self._sorted(rows), left_out, bits, dtype, out)
