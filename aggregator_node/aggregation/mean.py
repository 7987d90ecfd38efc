"""How accepted updates become an average: RULE_MEAN, type by type, in blocks. Pure.

The mean of an element is the sum of weight * value over the updates, divided by the sum of the weights. It is McMahan et
al.'s federated average (2017, arXiv:1602.05629), and averages over all updates. It has no defence: one owner moves it by as
much as its share of the weight allows.

F16, BF16, F32, F64: the sum is exact (`exact_sum`) and its quotient is rounded once to the tensor's type, to
nearest, ties to even (`exact_rounding`). An exact sum has no order: the same updates give the same bits in
every order of arrival and on every machine. `released` says how deltas are rounded and added to their base, and
`integer_sums` how the mean of integers and bools is rounded.

Memory: the sums (8 bytes an element; 16 for I32, 24 for I64), which are kept for the next round of the same
schema; what floats carry below them (`carry_bytes`; values that were made for it need more, which is asked
for as it grows; `exact_sum` has the worst); and blocks of 256 KiB, some 5 MiB with all types.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.buffers import anonymous
from aggregator_node.aggregation.exact_rounding import Rounding
from aggregator_node.aggregation.exact_sum import ExactSums
from aggregator_node.aggregation.integer_sums import LIMBS, add_integers, divide_integers
from aggregator_node.aggregation.released import DELTAS, blocks, released_pieces
from aggregator_node.aggregation.rule import Ask, ReadBlock, Rule
from cairn.errors import LimitExceeded, UpdateRefused, WrongState
from cairn.model.schema import FLOATS, Schema
from cairn.model.validation import runs_of
from cairn.protocol.aggregation import Aggregation
from cairn.runtime.buffer import Buffer
from cairn.v1 import round_pb2 as pb

MAX_WEIGHT = 2**31 - 1
MAX_TOTAL_WEIGHT = 2**41

_ASK_BYTES = 1 << 20  # the first are not asked for: they are few beside the blocks


class Mean(Rule):
    """The weighted mean of the updates added so far, all of one schema. One call at a time."""

    def __init__(self, schema: Schema, aggregation: Aggregation, floor: int) -> None:
        del aggregation, floor  # it has no numbers
        self._schema = schema
        self._base: Buffer | None = None
        self._ask: Ask = lambda _: None
        self._granted = self._reckoned = max(carry_bytes(schema), _ASK_BYTES)
        self._total_weight = 0
        self._runs = tuple(runs_of(schema))
        self._memory = anonymous(sum_bytes(schema))
        self._sums = tuple(self._divided())
        self._rounding = Rounding()

    @classmethod
    def memory_bytes(cls, schema: Schema) -> int:
        """The sums, and what floats carry below them."""
        return sum_bytes(schema) + carry_bytes(schema)

    @classmethod
    def held_updates(cls, cohort: int) -> int:
        """None: each is added when it comes."""
        del cohort
        return 0

    def begin(self, ask: Ask, base: Buffer | None = None, *, are_deltas: bool = False) -> None:
        """From now on ask for the memory that the sums need beyond `sum_bytes` and `carry_bytes`."""
        self._ask = ask
        self._base = base if are_deltas else None

    def add_blocks(self, read: ReadBlock, weight: int) -> None:
        """Add an update; a block begins at a multiple of `BLOCK` elements of its run and is that long, or the rest.

        Raises UpdateRefused for a weight outside 1 to `MAX_WEIGHT`, and LimitExceeded where all weights exceed
        `MAX_TOTAL_WEIGHT`.
        """
        if not 1 <= weight <= MAX_WEIGHT:
            raise UpdateRefused(f"a weight is 1 to {MAX_WEIGHT}", pb.REASON_EXAMPLES_REFUSED)
        if self._total_weight + weight > MAX_TOTAL_WEIGHT:
            raise LimitExceeded(f"the weights of a round add up to {MAX_TOTAL_WEIGHT} at the most")
        first = not self._total_weight
        with np.errstate(all="ignore"):  # what leaves the range is refused by the result, by name
            for number, (run, sums) in enumerate(zip(self._runs, self._sums, strict=True)):
                for block in blocks(run.count):
                    values, bits = read(number, block)
                    if isinstance(sums, ExactSums):
                        sums.add(block, values, bits, weight, first=first)
                        self._ask_for_growth()
                    else:
                        add_integers(values, weight, sums[:, block], first=first)
        self._total_weight += weight

    def result_blocks(self) -> Iterator[memoryview]:
        """The mean. Raises LimitExceeded where one leaves the range of its type, which only F64 and deltas can do."""
        if not self._total_weight:
            raise WrongState("there is no mean of no update")
        for run, sums in zip(self._runs, self._sums, strict=True):
            base = self._base if run.dtype in DELTAS else None
            start = None if base is None else run.values(base)
            yield from released_pieces(self._schema, run, partial(self._divide, sums), start)

    @property
    def _divisor(self) -> int:
        return self._total_weight

    def reset(self) -> None:
        self._total_weight = 0
        self._base = None
        self._granted = self._reckoned
        self._rounding.erase()
        for sums in self._sums:
            if isinstance(sums, ExactSums):
                sums.erase()
        np.frombuffer(self._memory, np.uint8).fill(0)

    def _ask_for_growth(self) -> None:
        carried = sum(sums.carried_bytes for sums in self._sums if isinstance(sums, ExactSums))
        if (missing := carried - self._granted) > 0:
            nbytes = -(-missing // _ASK_BYTES) * _ASK_BYTES
            self._ask(nbytes)
            self._granted += nbytes

    def _divided(self) -> Iterator[ExactSums | NDArray[np.int64]]:
        begin, memory = 0, self._memory
        for run in self._runs:
            if run.dtype in FLOATS:
                yield ExactSums(np.frombuffer(memory, np.float64, run.count, begin))
            else:
                words = np.frombuffer(memory, np.int64, LIMBS[run.dtype] * run.count, begin)
                yield words.reshape(-1, run.count)
            begin += 8 * run.count * LIMBS.get(run.dtype, 1)

    def _divide(
        self,
        sums: ExactSums | NDArray[np.int64],
        block: slice,
        dtype: str,
        out: NDArray[Any],
    ) -> None:
        if isinstance(sums, ExactSums):
            self._rounding.nearest(*sums.read(block), self._divisor, dtype, out)
        else:
            out[:] = divide_integers(sums[:, block], self._divisor)


def sum_bytes(schema: Schema) -> int:
    """The memory of the sums."""
    return sum(8 * run.count * LIMBS.get(run.dtype, 1) for run in runs_of(schema))


def carry_bytes(schema: Schema) -> int:
    """The memory below the sums that values of trained models need at the most.

    A sum of two F64 values is hardly ever an F64 value, but their errors add up to one. Of the narrower
    types one element in forty needs a second number, where weights are large and values small.
    """
    runs = [run for run in runs_of(schema) if run.dtype in FLOATS]
    return sum(8 * run.count if run.dtype == "F64" else run.count // 4 for run in runs)
