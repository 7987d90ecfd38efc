"""Turns an owner's update into what travels, and says what was lost on the way. Pure.

What is to travel of an element is (update - base + residual) * factor, in binary64: its change. The residual is
what the updates before did not carry (`owner_node/updates/error_feedback.py`), and a factor below 1 clips.

BF16_DELTAS: the change is rounded once to bfloat16, to nearest, ties to even, where that is no subnormal.
INT8_DELTAS: the change of an element of a tensor of fewer than two dimensions is rounded once to binary32. The
scale of 256 elements is the largest absolute change among the others / 127, rounded up to a power of two, so that
none is beyond 127 scales; each change in units of its scale is rounded to nearest, ties to even. Scales of any other
kind would let a coordinator take the sum of a few owners' deltas apart: as 3 * 1.01 + 5 * 1.17 is the sum of no other
two small multiples of these scales. Multiples of powers of two add up to what many others do.
A tensor that travels as it is keeps every bit, unless it is clipped: then it is base + change, rounded once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from cairn.errors import UpdateRefused
from cairn.model.schema import FLOATS
from cairn.model.segments import LARGEST_QUANTUM, SCALE_BLOCK, Segment
from cairn.model.update_encoding import UpdateLayout, by_scale, decoded, scales_of
from cairn.model.validation import ANY_FINITE, BLOCK, check_values
from cairn.runtime.buffer import Buffer
from cairn.v1 import round_pb2 as pb

Residual = Mapping[str, NDArray[np.float32]]  # of each encoded run, by its type
Block = NDArray[np.float64]
Scratch = NDArray[np.float64]  # two rows of a block each

_BF16_LARGEST = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)  # type: ignore[no-untyped-call]  # not annotated
_DROPPED_BITS = 45  # of the 53 of binary64, where bfloat16 has 8
_LARGEST_SCALE = 2.0**127  # the powers of two that are binary32 numbers
_SMALLEST_SCALE = 2.0**-149


@dataclass(frozen=True)
class Change:
    """What is to travel: an update, its base, and what is to be added to their difference."""

    base: Buffer
    update: Buffer
    residual: Residual = field(default_factory=dict)
    factor: float = 1.0

    def of(self, segment: Segment, block: slice, scratch: Scratch) -> Block:
        """The change of one block of a run of floating-point tensors, in the first row of `scratch`.

        Operands are widened by a copy of their own: inside the arithmetic NumPy takes twice as long for it.
        """
        change: Block = scratch[0, : block.stop - block.start]
        operand: Block = scratch[1, : block.stop - block.start]
        np.copyto(change, segment.run.values(self.update)[block])
        np.copyto(operand, segment.run.values(self.base)[block])
        change -= operand
        if segment.run.dtype in self.residual:
            np.copyto(operand, self.residual[segment.run.dtype][block])
            change += operand
        if self.factor != 1:
            change *= self.factor
        return change


def length(layout: UpdateLayout, change: Change) -> float:
    """The L2 norm of the change over all floating-point tensors together."""
    scratch, total = np.empty((2, BLOCK)), 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # `encode` refuses what is not finite
        for segment in layout.segments:
            if segment.run.dtype in FLOATS:
                for block in segment.run.blocks():
                    terms = change.of(segment, block, scratch)
                    total += float(terms @ terms)
    return math.sqrt(total)


def encode(layout: UpdateLayout, change: Change, out: bytearray | memoryview) -> None:
    """Write the payload in deltas into `out`, which has the layout's size.

    Raises UpdateRefused where a value of the update is not finite, or a change is beyond what the encoding
    can say; what is in `out` is then of no use.
    """
    view, scratch = memoryview(out), np.empty((2, BLOCK))
    for gap in layout.gaps():
        view[gap] = bytes(gap.stop - gap.start)
    with np.errstate(over="ignore", invalid="ignore"):  # it is refused below, by its name
        for segment in layout.segments:
            if not segment.is_delta:
                _copy(segment, change, view, scratch)
                continue
            write = _write_quanta if segment.encoding == pb.ENCODING_INT8_DELTAS else _write_halves
            for block in segment.run.blocks():
                terms = change.of(segment, block, scratch)
                if segment.encoding == pb.ENCODING_INT8_DELTAS:
                    _take_plain(segment, block, terms, view)
                write(segment, block, terms, scratch[1], view)


def keep_remainder(
    layout: UpdateLayout,
    change: Change,
    payload: Buffer,
    residual: Mapping[str, NDArray[np.float32]],
) -> None:
    """Write into `residual`, which may be the change's own, what of the change the payload does not say."""
    scratch = np.empty((2, BLOCK))
    for segment in layout.segments:
        if segment.is_delta:
            for block in segment.run.blocks():
                terms = change.of(segment, block, scratch)
                terms -= decoded(segment, payload, block, scratch[1])
                residual[segment.run.dtype][block] = terms


def _copy(segment: Segment, change: Change, out: memoryview, scratch: Scratch) -> None:
    update, values = segment.run.values(change.update), segment.values(out)
    check_values(segment.schema, update.view(np.uint8).data, ANY_FINITE)
    if change.factor == 1 or segment.run.dtype not in FLOATS:
        np.copyto(values, update)
        return
    base = segment.run.values(change.base)
    for block in segment.run.blocks():
        terms = change.of(segment, block, scratch)
        terms += base[block]
        values[block] = terms.astype(values.dtype)


def _write_halves(
    segment: Segment, block: slice, terms: Block, scratch: Block, out: memoryview
) -> None:
    magnitudes = np.abs(terms, out=scratch[: len(terms)])
    if not magnitudes.max() <= _BF16_LARGEST:
        raise _refusal(segment, block.start + int((~(magnitudes <= _BF16_LARGEST)).argmax()))
    # Rounded by hand to its first 8 bits: ml_dtypes would round twice, by way of binary32.
    bits, carry = terms.view(np.int64), scratch[: len(terms)].view(np.int64)
    np.right_shift(bits, _DROPPED_BITS, out=carry)
    carry &= 1
    bits += carry
    bits += (1 << (_DROPPED_BITS - 1)) - 1
    bits &= -1 << _DROPPED_BITS
    segment.halves(out)[block] = terms


def _take_plain(segment: Segment, block: slice, terms: Block, out: memoryview) -> None:
    """Write what is plain, and leave zeros in its place."""
    deltas = segment.plain_deltas(out)
    for here, numbers in segment.plain.slices(block):
        deltas[numbers] = terms[here]
        terms[here] = 0
    first = segment.plain.rank(block.start)
    good = np.isfinite(deltas[first : segment.plain.rank(block.stop)])
    if not good.all():
        raise _refusal(segment, segment.plain.element(first + int(good.argmin())))


def _write_quanta(
    segment: Segment, block: slice, terms: Block, scratch: Block, out: memoryview
) -> None:
    wanted = scales_of(block)
    exact = np.zeros(wanted.stop - wanted.start)
    magnitudes = np.abs(terms, out=scratch[: len(terms)])
    for rows, largest in by_scale(magnitudes, exact):
        rows.max(axis=1, out=largest[:, 0])
    exact /= LARGEST_QUANTUM
    if not exact.max() <= _LARGEST_SCALE:
        bad = int((~(exact <= _LARGEST_SCALE)).argmax()) * SCALE_BLOCK
        within = ~(magnitudes[bad : bad + SCALE_BLOCK] <= _LARGEST_SCALE * LARGEST_QUANTUM)
        raise _refusal(segment, block.start + bad + int(within.argmax()))
    scales = _powers_of_two(exact)
    segment.scales(out)[wanted] = scales
    units = np.where(scales == 0, 1.0, scales.astype(np.float64))
    for rows, units_of_rows in by_scale(terms, units):
        np.divide(rows, units_of_rows, out=rows)
    np.rint(terms, out=terms)
    segment.quanta(out)[block] = terms


def _powers_of_two(exact: NDArray[np.float64]) -> NDArray[np.float32]:
    """The least powers of two in binary32 that are no less than these; of a zero, zero."""
    fractions, exponents = np.frexp(np.maximum(exact, _SMALLEST_SCALE))
    scales = np.ldexp(1.0, exponents - (fractions == 0.5))  # noqa: PLR2004 - frexp's own form of a power
    return np.where(exact == 0, 0.0, scales).astype(np.float32)


def _refusal(segment: Segment, element: int) -> UpdateRefused:
    return UpdateRefused(
        f"tensor {segment.tensor_name(element)} has a change that is NaN, infinite or too large to travel",
        pb.REASON_NON_FINITE,
    )
