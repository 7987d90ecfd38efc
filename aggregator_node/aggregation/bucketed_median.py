"""The median of the means of buckets: RULE_BUCKETED_MEDIAN. Pure.

The n updates, in an order that is drawn (`draw_seed` of the release's statement), are divided into k = floor(n / bucket) buckets of
consecutive ones, the first n mod k of which have one more. Each bucket has its mean, and the result is the median of these, element
by element; of an even number it is the mean of the two in the middle. The median of means is Chen, Su and Xu's (2017,
arXiv:1705.05491); buckets before a robust rule are Karimireddy, He and Jaggi's (2022, arXiv:2006.09365).

Averages over floor(n / k) owners, `bucket` at least, and of two buckets over all n. Where k is four or more and even, each
element is the mean of two buckets, but of other two from element to element: whoever knows how elements depend on
one another can solve for the means of single buckets. A median of the updates themselves would release one owner's own value
in each element.

The mean of a bucket is exact and rounded once to the tensor's type, or for deltas to bfloat16, as it is released; so is the
mean of two. Integers and bools as well. The order matters, for it decides who shares a bucket.

Memory: what `held_updates` says. Time: k * log2(k)**2 / 2 passes over the model, beside the mean's.

It holds while fewer than half of the buckets have a colluder, and t colluders do not choose their buckets. They know their
own updates: of a bucket of s owners whose mean is the result, t colluders in it learn the mean of the other s - t.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.sorted_updates import Scratch, SortedUpdates
from cairn.model.schema import DTYPES, Schema
from cairn.model.validation import SIGNIFICANT_BITS
from cairn.protocol.aggregation import Aggregation, bucket_count


class BucketedMedian(SortedUpdates):
    """The median of each element over the means of buckets of owners."""

    def __init__(self, schema: Schema, aggregation: Aggregation, floor: int) -> None:
        super().__init__(schema, aggregation, floor)
        self._means = Scratch()

    def reset(self) -> None:
        super().reset()
        self._means.erase()

    def _combine_rows(
        self, rows: Sequence[NDArray[Any]], bits: int, dtype: str, out: NDArray[Any]
    ) -> None:
        count = bucket_count(self._aggregation.whole_number("bucket"), len(rows))
        kind = np.dtype(np.uint8) if dtype == "BOOL" else DTYPES[dtype]
        means = self._means.rows(count, len(out), kind)
        for mean, bucket in zip(means, bucket_slices(len(rows), count), strict=True):
            part = rows[bucket]
            self._mean.write(((row, bits, 1) for row in part), len(part), dtype, mean)
        ordered = self._sorted(list(means))
        self._write_middle(ordered, (count - 1) // 2, SIGNIFICANT_BITS.get(dtype, 0), dtype, out)


def bucket_slices(contributors: int, count: int) -> list[slice]:
    """Which consecutive updates are in which bucket: the first ones have one more where they do not divide evenly."""
    size, larger = divmod(contributors, count)
    ends = [size * number + min(number, larger) for number in range(count + 1)]
    return [slice(begin, end) for begin, end in pairwise(ends)]
