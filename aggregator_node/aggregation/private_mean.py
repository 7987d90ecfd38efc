"""The mean of bounded updates, with noise that hides every single one: RULE_PRIVATE_MEAN. Pure.

    base + norm / (G * n) * (sum of v_i + z),    v_i = round(G / max(norm, |d_i|) * d_i),    d_i = x_i - base,

where |d| is the Euclidean norm over all tensors together, n is how many updates there are, G = 2**36, and every element of z
is a draw of its own of the discrete Gaussian of scale G * noise, rounded up to a whole number (Canonne, Kamath, Steinke 2020,
arXiv 2004.00010; the clipping of McMahan et al. 2018, arXiv 1710.06963). Gradients have no base: d_i is the gradient itself.

Sensitivity. v_i is a vector of whole numbers, and |v_i| is at most G, by exact arithmetic: where rounding made it longer, the
update is shortened a little more. So one update in the place of none (v_i = 0) moves the sum by at most G, and the scale of the noise
is `noise` times as much or more. All that comes after the noise is post-processing: it is added as whole numbers, and only the
noised sum is divided, added to the base and rounded. n is no secret: the statement of a release has it.

The sum is exact, so the same updates and the same noise give the same bits in every order of arrival. The noise is drawn once
and takes the place of the exact sum, which is gone from then on: asked for again, the result is the same.

Averages over all updates, which count the same. t colluders move it by t / n of the norm at most. They know their own updates,
so to them the result is that of the others, with the same noise.

Time: an update takes three times as long as in the mean, the noise as long as twenty updates in the mean. Memory: 8 bytes an
element, and some 4 MiB of blocks. 1024 updates add up to 2**46 at the most and the scale of the noise is below 2**50, so that
64 bits are enough, but for a draw of thousands of sigma.
"""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.buffers import anonymous
from aggregator_node.aggregation.discrete_gaussian import DiscreteGaussian
from aggregator_node.aggregation.distances import origin_of, squared_distance
from aggregator_node.aggregation.exact_rounding import cast
from aggregator_node.aggregation.exact_sum import BLOCK, Floats
from aggregator_node.aggregation.key_stream import KeyStream, fresh_key
from aggregator_node.aggregation.released import blocks, released_pieces
from aggregator_node.aggregation.rule import Ask, ReadBlock, Rule
from cairn.errors import UpdateRefused, WrongState
from cairn.model.schema import Schema
from cairn.model.validation import SIGNIFICANT_BITS, runs_of
from cairn.protocol.aggregation import Aggregation
from cairn.runtime.buffer import Buffer
from cairn.v1 import round_pb2 as pb

GRID = 1 << 36  # how many grid units the norm is: G

_TO_HIGH = 1.5 * 2.0 ** (52 + 18)  # rounds what it is added to and subtracted from to 2**18
_FARTHEST = 2.0**400  # an element that is farther counts as this far, so that squares stay finite


class PrivateMean(Rule):
    """The noised mean of the updates, none of which lies farther from the base than the norm. One call at a time."""

    def __init__(
        self,
        schema: Schema,
        aggregation: Aggregation,
        floor: int,
        new_key: Callable[[], bytes] = fresh_key,
    ) -> None:
        """`new_key` makes the 32 bytes that the noise of one release is drawn from; all tensors are of floats."""
        del floor  # it averages over all
        self._schema = schema
        self._norm = aggregation.rule_numbers["norm"]
        self._sigma = Fraction(math.ceil(Fraction(aggregation.rule_numbers["noise"]) * GRID))
        self._new_key = new_key
        self._runs = tuple(runs_of(schema))
        counts = [run.count for run in self._runs]
        memory = anonymous(self.memory_bytes(schema))
        self._all_sums = np.frombuffer(memory, np.int64, sum(counts))
        self._sums = np.split(self._all_sums, np.cumsum(counts)[:-1])  # by run
        self._shortening = 1 - math.sqrt(sum(counts) + 1) / GRID  # by what rounding can add
        self._floats = np.zeros((3, BLOCK))
        self._integers = np.zeros(BLOCK, np.int64)
        self._count = 0
        self._is_noised = False
        self._base: Buffer | None = None
        self._origin = self._nowhere = origin_of(self._runs, None, are_deltas=False)

    @classmethod
    def memory_bytes(cls, schema: Schema) -> int:
        """The sums."""
        return 8 * sum(run.count for run in runs_of(schema))

    @classmethod
    def held_updates(cls, cohort: int) -> int:
        """None: each is added when it comes."""
        del cohort
        return 0

    def begin(self, ask: Ask, base: Buffer | None = None, *, are_deltas: bool = False) -> None:
        """Begin a round; no memory is asked for. Distances are from the base, if there is one."""
        del ask
        self._base = base
        self._origin = origin_of(self._runs, base, are_deltas=are_deltas)

    def add_blocks(self, read: ReadBlock, weight: int) -> None:
        """Add an update. Raises UpdateRefused for a weight other than 1."""
        if weight != 1:
            raise UpdateRefused("here every update counts 1", pb.REASON_EXAMPLES_REFUSED)
        apart = self._apart(read)
        length = math.sqrt(squared_distance(self._runs, apart, self._nowhere))
        # One unit below the norm, most that are shortened are still within it once they are rounded.
        scale = GRID / max(self._norm, length * (1 + 1 / GRID))
        while self._add(apart, scale, np.add) > GRID**2:
            self._add(apart, scale, np.subtract)
            scale *= self._shortening
        self._count += 1

    def result_blocks(self) -> Iterator[memoryview]:
        """The mean. Raises LimitExceeded where it leaves the range of its type, with the noise."""
        if not self._count:
            raise WrongState("there is no mean of no update")
        if not self._is_noised:
            self._add_noise()
            self._is_noised = True
        for number, run in enumerate(self._runs):
            yield from released_pieces(self._schema, run, partial(self._combine, number))

    def reset(self) -> None:
        self._count = 0
        self._is_noised = False
        self._base = None
        self._origin = self._nowhere
        self._floats.fill(0)
        self._integers.fill(0)
        self._all_sums.fill(0)

    def _apart(self, read: ReadBlock) -> ReadBlock:
        """Reads an update as what it differs by from the base, in binary64."""

        def apart(number: int, block: slice) -> tuple[NDArray[Any], int]:
            difference = self._floats[0, : block.stop - block.start]
            np.copyto(difference, read(number, block)[0])
            with np.errstate(over="ignore"):
                np.subtract(difference, self._origin(number, block)[0], out=difference)
            if self._runs[number].dtype == "F64":
                np.clip(difference, -_FARTHEST, _FARTHEST, out=difference)
            return difference, SIGNIFICANT_BITS["F64"]

        return apart

    def _add(self, apart: ReadBlock, scale: float, into: np.ufunc) -> int:
        """Put an update on the grid, add it or subtract it again, and return the square of its norm there."""
        square = 0
        for number, (run, sums) in enumerate(zip(self._runs, self._sums, strict=True)):
            for block in blocks(run.count):
                units = apart(number, block)[0]
                np.multiply(units, scale, out=units)
                np.rint(units, out=units)
                square += self._squared_norm(units)
                whole = self._integers[: len(units)]
                np.copyto(whole, units, casting="unsafe")
                into(sums[block], whole, out=sums[block])
        return square

    def _squared_norm(self, units: Floats) -> int:
        """The exact sum of the squares of up to BLOCK whole numbers, of hardly more than 2**36 each.

        Each is the sum of a multiple of 2**18 and a rest of at most 2**17. The products of these are multiples of 2**36, 2**18 and 1, and their
        sums are below 2**52 times as much, so that all are exact in binary64, whatever their order.
        """
        high, low = self._floats[1:3, : len(units)]
        np.subtract(np.add(units, _TO_HIGH, out=high), _TO_HIGH, out=high)
        np.subtract(units, high, out=low)
        of_high, of_both, of_low = (
            int(np.einsum("i,i", a, b)) for a, b in ((high, high), (high, low), (low, low))
        )
        return of_high + 2 * of_both + of_low

    def _add_noise(self) -> None:
        noise = DiscreteGaussian(self._sigma, KeyStream(self._new_key()))
        noise.add_to(self._all_sums)
        noise.erase()

    def _combine(self, number: int, block: slice, dtype: str, out: NDArray[Any]) -> None:
        """Write the mean of a block: what follows on the noise, in binary64, rounded once to the tensor's type."""
        mean = self._floats[0, : len(out)]
        np.multiply(self._sums[number][block], self._norm / GRID / self._count, out=mean)
        if self._base is not None:
            np.add(mean, self._runs[number].values(self._base)[block], out=mean)
        cast(mean, dtype, out)
