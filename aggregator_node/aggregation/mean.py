"""How accepted updates become an average: RULE_MEAN, type by type, in blocks. Pure.

The mean of an element is the sum of weight * value over the updates, divided by the sum of the weights.

F16, BF16, F32, F64: the sum is exact (`exact_sum`) and its quotient is rounded once to the tensor's type, to
nearest, ties to even (`exact_rounding`). An exact sum has no order: the same updates give the same bits in
every order of arrival and on every machine. Where updates are deltas, their mean is rounded once to
bfloat16 and added to the base. What it is made of has as few bits: said more precisely, it could be taken apart into
the deltas of a few owners, as 811 * 13 + 653 * 5 is the sum of no other two small multiples. A mean of zero is +0.0, so that
models of equal values have equal bytes: releases are compared by the digests of their bases.

I8, I16, I32, I64, U8, BOOL: the sum is exact and the mean is rounded to the nearest integer, ties to even.
A bool is a 0 or a 1, so its mean is true where more than half of the weight is true; a tie is false.
To stay exact within int64, a value x is kept as limbs: x = ... + limb1 * 2**22 + limb0, where all but the
highest are 0 to 2**22 - 1. A limb's sum is below 2**22 * total weight, and the total weight is at most
2**41 (1024 owners of the largest weight), so each sum stays below 2**63.

Metrics: the exact weighted mean, rounded once to 12 bits. A binary64 has room for the values of several owners side
by side: of accuracies c / n, where the n are known and have no common factor, it would tell every c.

Memory: the sums (8 bytes an element; 16 for I32, 24 for I64), which are kept for the next round of the same
schema; what floats carry below them (`carry_bytes`; values that were made for it need more, which is asked
for as it grows; `exact_sum` has the worst); and blocks of 256 KiB, some 5 MiB with all types.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.buffers import anonymous
from aggregator_node.aggregation.exact_rounding import Rounding
from aggregator_node.aggregation.exact_sum import BLOCK, ExactSums
from aggregator_node.aggregation.rule import Ask, ReadBlock, Rule
from cairn.errors import LimitExceeded, UpdateRefused, WrongState
from cairn.model.schema import DTYPES, FLOATS, Schema
from cairn.model.validation import DtypeBlock, clear_negative_zeros, runs_of
from cairn.protocol.aggregation import Aggregation
from cairn.runtime.buffer import Buffer
from cairn.v1 import round_pb2 as pb

MAX_WEIGHT = 2**31 - 1
MAX_TOTAL_WEIGHT = 2**41
METRIC_BITS = 12

_ASK_BYTES = 1 << 20  # the first are not asked for: they are few beside the blocks
_DELTAS = frozenset({"F32", "F64"})  # see Encoding in round.proto
_PIECE = 4 * BLOCK  # elements of the mean that are handed out at once
_LIMB_BITS = 22
_LIMB_BASE = 1 << _LIMB_BITS
_LIMBS = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 1, "I32": 2, "I64": 3}


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
                for block in _blocks(run.count):
                    values, bits = read(number, block)
                    if isinstance(sums, ExactSums):
                        sums.add(block, values, bits, weight, first=first)
                        self._ask_for_growth()
                    else:
                        _add_integers(values, weight, sums[:, block], first=first)
        self._total_weight += weight

    def result_blocks(self) -> Iterator[memoryview]:
        """The mean. Raises LimitExceeded where one leaves the range of its type, which only F64 and deltas can do."""
        if not self._total_weight:
            raise WrongState("there is no mean of no update")
        for run, sums in zip(self._runs, self._sums, strict=True):
            means = cycle(np.empty((2, _PIECE), DTYPES[run.dtype]))
            base = self._base if run.dtype in _DELTAS else None
            start = None if base is None else run.values(base)
            for piece in _blocks(run.count, _PIECE):
                out = next(means)[: piece.stop - piece.start]
                for part in _blocks(len(out)):
                    block = slice(piece.start + part.start, piece.start + part.stop)
                    if isinstance(sums, ExactSums):
                        self._round(run, sums, block, start, out[part])
                    else:
                        out[part] = _divide_integers(sums[:, block], self._total_weight)
                yield out.view(np.uint8).data

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
                words = np.frombuffer(memory, np.int64, _LIMBS[run.dtype] * run.count, begin)
                yield words.reshape(-1, run.count)
            begin += 8 * run.count * _LIMBS.get(run.dtype, 1)

    def _round(
        self,
        run: DtypeBlock,
        sums: ExactSums,
        block: slice,
        base: NDArray[Any] | None,
        out: NDArray[Any],
    ) -> None:
        with np.errstate(all="ignore"):
            level, carry = sums.read(block)
            if base is None:
                self._rounding.nearest(level, carry, self._total_weight, run.dtype, out)
            else:
                delta = np.empty(len(out), DTYPES["BF16"])
                self._rounding.nearest(level, carry, self._total_weight, "BF16", delta)
                np.add(base[block], delta.astype(np.float64), out=out, casting="same_kind")
        clear_negative_zeros(out)
        if not (good := np.isfinite(out)).all():
            name = run.tensor_name(self._schema, block.start + int(good.argmin()))
            raise LimitExceeded(f"the average of tensor {name} exceeds the range of {run.dtype}")


def sum_bytes(schema: Schema) -> int:
    """The memory of the sums."""
    return sum(8 * run.count * _LIMBS.get(run.dtype, 1) for run in runs_of(schema))


def carry_bytes(schema: Schema) -> int:
    """The memory below the sums that values of trained models need at the most.

    A sum of two F64 values is hardly ever an F64 value, but their errors add up to one. Of the narrower
    types one element in forty needs a second number, where weights are large and values small.
    """
    runs = [run for run in runs_of(schema) if run.dtype in FLOATS]
    return sum(8 * run.count if run.dtype == "F64" else run.count // 4 for run in runs)


def average_metrics(reports: Sequence[tuple[Mapping[str, float], int]]) -> dict[str, float]:
    """The weighted mean of each metric that every report has, by name, to `METRIC_BITS`; every value is finite.

    A metric that one report lacks is left out: its mean would be over fewer owners than were counted.
    """
    if not reports:
        return {}
    shared = set.intersection(*(set(metrics) for metrics, _ in reports))
    return {
        name: _mean_metric([(Fraction(metrics[name]), weight) for metrics, weight in reports])
        for name in sorted(shared)
    }


def _mean_metric(terms: Sequence[tuple[Fraction, int]]) -> float:
    """The exact mean, rounded once to a multiple of 2**-METRIC_BITS of the terms' mean size, as a power of two.

    Of the size, and not of the mean itself: an owner that sends what the others' values add up to, with the other
    sign, would else have the rest said to as many bits again.
    """
    total = sum(weight for _, weight in terms)
    size = sum(abs(value) * weight for value, weight in terms) / total
    if not size:
        return 0.0
    exponent = math.frexp(float(size))[1]
    unit = Fraction(2) ** (exponent - METRIC_BITS)
    mean = sum(value * weight for value, weight in terms) / total
    limit = Fraction(sys.float_info.max)
    return float(max(-limit, min(limit, round(mean / unit) * unit)))


def _add_integers(
    values: NDArray[Any], weight: int, sums: NDArray[np.int64], *, first: bool
) -> None:
    if first:
        sums.fill(0)
    rest = values.astype(np.int64)
    for limb in range(len(sums) - 1):
        sums[limb] += (rest & (_LIMB_BASE - 1)) * weight
        rest >>= _LIMB_BITS
    sums[-1] += rest * weight


def _divide_integers(sums: NDArray[np.int64], total_weight: int) -> NDArray[np.int64]:
    """Divide by hand, limb by limb from the highest, so that no step leaves int64."""
    limbs = sums.copy()
    for limb in range(len(limbs) - 1):
        limbs[limb + 1] += limbs[limb] >> _LIMB_BITS
        limbs[limb] &= _LIMB_BASE - 1
    quotient = np.zeros(limbs.shape[1], np.int64)
    remainder = np.zeros(limbs.shape[1], np.int64)
    for sum_of_limb in limbs[::-1]:
        digit, remainder = np.divmod(remainder * _LIMB_BASE + sum_of_limb, total_weight)
        quotient = quotient * _LIMB_BASE + digit
    twice = 2 * remainder
    quotient += (twice > total_weight) | ((twice == total_weight) & (quotient % 2 == 1))
    return quotient


def _blocks(count: int, length: int = BLOCK) -> Iterator[slice]:
    for start in range(0, count, length):
        yield slice(start, min(start + length, count))
