"""The mean of updates of bounded norm: RULE_NORM_BOUNDED_MEAN. Pure.

    base + sum of w_i * d_i * min(1, norm / |d_i|) / sum of w_i,    d_i = x_i - base,

where |d| is the Euclidean norm over all floating-point tensors together (Sun et al. 2019, arXiv:1911.07963, "norm
thresholding"; the clipping of McMahan et al. 2018, arXiv:1710.06963). Gradients have no base: d_i is the gradient itself. Integers and
bools are averaged as they are.

An update within the norm is added as it is, so where all are, the result is the mean's (`mean`) to the bit. Of any other,
base + factor * d is rounded once to the tensor's type, factor * d itself to 24 bits where updates are deltas, and the exact mean
is of these. So what an update moves can be above the bound by what that rounding makes: half a unit in the last place of each
element, 2**-24 of its value in F32.

Averages over all updates, of which each counts as its weight says and none moves the result by more than its part of the
norm. But where all updates but one are far beyond the norm, in other elements, little is left of them in the elements of that
one. t colluders move it by their part of the weight times the norm at most. They know their own part, so to them the
result is the mean of the others.

Memory is the mean's and 1 MiB; time is the mean's, one more look at each update, and one more pass over one that is too long.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.distances import origin_of, squared_distance
from aggregator_node.aggregation.exact_rounding import cast
from aggregator_node.aggregation.exact_sum import BLOCK
from aggregator_node.aggregation.mean import Mean
from aggregator_node.aggregation.released import DELTAS
from aggregator_node.aggregation.rule import Ask, ReadBlock
from cairn.model.schema import DTYPES, FLOATS, Schema
from cairn.model.validation import SIGNIFICANT_BITS
from cairn.protocol.aggregation import Aggregation
from cairn.runtime.buffer import Buffer


class NormBoundedMean(Mean):
    """The weighted mean of the updates, none of which lies farther from the base than the norm."""

    def __init__(self, schema: Schema, aggregation: Aggregation, floor: int) -> None:
        super().__init__(schema, aggregation, floor)
        self._norm = aggregation.rule_numbers["norm"]
        self._are_deltas = False
        self._origin = origin_of(self._runs, None, are_deltas=False)
        self._scaled = np.empty(BLOCK)

    def begin(self, ask: Ask, base: Buffer | None = None, *, are_deltas: bool = False) -> None:
        """Begin a round; distances are from the base, if there is one."""
        super().begin(ask, base, are_deltas=are_deltas)
        self._are_deltas = are_deltas
        self._origin = origin_of(self._runs, base, are_deltas=are_deltas)

    def add_blocks(self, read: ReadBlock, weight: int) -> None:
        """Add an update, which is read twice."""
        length = math.sqrt(squared_distance(self._runs, read, self._origin))
        super().add_blocks(
            read if length <= self._norm else self._shortened(read, self._norm / length), weight
        )

    def reset(self) -> None:
        super().reset()
        self._origin = origin_of(self._runs, None, are_deltas=False)
        self._scaled.fill(0)

    def _shortened(self, read: ReadBlock, factor: float) -> ReadBlock:
        def shortened(number: int, block: slice) -> tuple[NDArray[Any], int]:
            dtype = self._runs[number].dtype
            values, bits = read(number, block)
            if dtype not in FLOATS:
                return values, bits
            if self._are_deltas and dtype in DELTAS:
                dtype = "F32"
            moved = self._scaled[: len(values)]
            centre = self._origin(number, block)[0].astype(np.float64)
            np.subtract(values, centre, out=moved)
            np.multiply(moved, factor, out=moved)
            np.add(moved, centre, out=moved)
            rounded = np.empty(len(values), DTYPES[dtype])
            cast(moved, dtype, rounded)
            return rounded, SIGNIFICANT_BITS[dtype]

        return shortened
