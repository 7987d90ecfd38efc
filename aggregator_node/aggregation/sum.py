"""How accepted gradients, or counts of statistics, become a sum: RULE_SUM. Pure.

The sum of an element is the sum of weight * value over the updates; all weights are equal. It is the mean (`mean`) without the
division, as exact and as independent of the order, and rounded once to the tensor's type. It is what a step of SGD over
the union of all batches adds up (Chen et al. 2016, arXiv:1604.00981), and averages over all updates as the mean does: who
knows how many there are can turn one into the other.

Memory and time are the mean's. It has no defence: t colluders move it without a bound. They know their own updates, so
what they learn is the sum of the others.
"""

from aggregator_node.aggregation.mean import Mean


class Sum(Mean):
    """The sum of the updates added so far. Raises LimitExceeded where it leaves the range of its type."""

    @property
    def _divisor(self) -> int:
        return 1
