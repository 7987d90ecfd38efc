"""Where one run of a model lies in the payload of an update, and which of its elements are plain there. Pure.

Beside int8 deltas those of tensors of fewer than two dimensions are plain. Biases, norms and running statistics
are few, and of very unlike sizes: a running variance of a thousand that shared its scale with one of a
thousandth would make a zero of it.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from cairn.model.schema import Schema
from cairn.model.validation import SIGNIFICANT_BITS, DtypeBlock
from cairn.runtime.buffer import Buffer
from cairn.v1 import round_pb2 as pb

SCALE_BLOCK = 256  # elements; a divisor of every block in which values are read
LARGEST_QUANTUM = 127

_FEWEST_DIMENSIONS = 2  # of a tensor whose deltas are quantised


@dataclass(frozen=True)
class UnquantizedElements:
    """The plain elements of a run, in order: number 0, 1, 2 and so on. They lie in stretches."""

    edges: tuple[int, ...]  # where each stretch begins and ends: ascending, no two stretches touch
    ranks: tuple[int, ...]  # how many plain elements come before each stretch, and last of all

    @classmethod
    def of(cls, schema: Schema) -> "UnquantizedElements":
        """Those of a run that has these tensors."""
        edges, end = list[int](), 0
        sized = [
            (len(tensor.shape) < _FEWEST_DIMENSIONS, math.prod(tensor.shape))
            for tensor in schema.tensors
        ]
        for is_plain, stretch in groupby((each for each in sized if each[1]), lambda each: each[0]):
            begin, end = end, end + sum(count for _, count in stretch)
            if is_plain:
                edges += begin, end
        lengths = (end - begin for begin, end in zip(edges[::2], edges[1::2], strict=True))
        return cls(tuple(edges), tuple(accumulate(lengths, initial=0)))

    @property
    def count(self) -> int:
        return self.ranks[-1]

    def rank(self, element: int) -> int:
        """How many plain elements come before this element of the run."""
        passed = bisect_right(self.edges, element)
        stretch, is_inside = divmod(passed, 2)
        return self.ranks[stretch] + (element - self.edges[passed - 1] if is_inside else 0)

    def element(self, number: int) -> int:
        """Which element of the run the plain one of this number is."""
        stretch = bisect_right(self.ranks, number) - 1
        return self.edges[2 * stretch] + number - self.ranks[stretch]

    def first_other(self, element: int) -> int:
        """The first element from this one on that is not plain, or where the run ends."""
        passed = bisect_right(self.edges, element)
        return self.edges[passed] if passed % 2 else element

    def edges_in(self, block: slice) -> list[int]:
        """Where within the block each stretch begins and ends, as far as it lies in the block."""
        low, high = bisect_right(self.edges, block.start), bisect_left(self.edges, block.stop)
        inner = [edge - block.start for edge in self.edges[low:high]]
        return [0] * (low % 2) + inner + [block.stop - block.start] * (high % 2)

    def slices(self, block: slice) -> Iterator[tuple[slice, slice]]:
        """The stretches of a block: where in the block, and the numbers of their elements."""
        edges, number = self.edges_in(block), self.rank(block.start)
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            yield slice(begin, end), slice(number, number := number + end - begin)


@dataclass(frozen=True)
class Segment:
    """One run of the model, and where it lies in the payload: from the byte `begin` on.

    `encoding` is WHOLE where the run travels as it is. `schema` has the run's own tensors only.
    """

    run: DtypeBlock
    begin: int
    encoding: "pb.Encoding"
    schema: Schema

    @property
    def is_delta(self) -> bool:
        return self.encoding != pb.ENCODING_WHOLE

    @property
    def scale_count(self) -> int:
        return -(-self.run.count // SCALE_BLOCK) if self.encoding == pb.ENCODING_INT8_DELTAS else 0

    @cached_property
    def plain(self) -> UnquantizedElements:
        """Which deltas of a segment in INT8_DELTAS are plain."""
        return UnquantizedElements.of(self.schema)

    @property
    def end(self) -> int:
        if self.encoding == pb.ENCODING_INT8_DELTAS:
            return self._quanta_begin + self.run.count
        if self.encoding == pb.ENCODING_BF16_DELTAS:
            return self.begin + 2 * self.run.count
        return self.begin + self.schema.total_bytes

    @property
    def significant_bits(self) -> int:
        """How many an element, value or delta, has at the most as a binary64; 0 for integers."""
        if self.encoding == pb.ENCODING_INT8_DELTAS:
            return LARGEST_QUANTUM.bit_length() + SIGNIFICANT_BITS["F32"]
        return SIGNIFICANT_BITS.get("BF16" if self.is_delta else self.run.dtype, 0)

    def values(self, payload: Buffer) -> NDArray[Any]:
        """The elements of a run that travels as it is, in place."""
        return DtypeBlock(self.run.dtype, self.begin, self.run.count).values(payload)

    def halves(self, payload: Buffer) -> NDArray[Any]:
        """The bfloat16 deltas, in place."""
        return np.frombuffer(payload, ml_dtypes.bfloat16, self.run.count, self.begin)

    def scales(self, payload: Buffer) -> NDArray[np.float32]:
        """The scales of the int8 deltas, in place."""
        return np.frombuffer(payload, "<f4", self.scale_count, self.begin)

    def plain_deltas(self, payload: Buffer) -> NDArray[np.float32]:
        """The plain ones among the int8 deltas, in place."""
        begin = self.begin + 4 * self.scale_count
        return np.frombuffer(payload, "<f4", self.plain.count, begin)

    def quanta(self, payload: Buffer) -> NDArray[np.int8]:
        """The int8 deltas in units of their scales, in place."""
        return np.frombuffer(payload, np.int8, self.run.count, self._quanta_begin)

    @property
    def _quanta_begin(self) -> int:
        return self.begin + 4 * (self.scale_count + self.plain.count)

    def tensor_name(self, element: int) -> str:
        return DtypeBlock(self.run.dtype, 0, self.run.count).tensor_name(self.schema, element)
