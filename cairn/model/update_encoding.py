"""How an update travels: whole, or as its deltas from the round's base. Pure.

Of each F32 and F64 tensor a payload in deltas has update - base, in few bits an element; every other tensor
travels as it is. The payload holds the runs of the model's schema (`cairn.model.validation.runs_of`), in their order:

    as it is       the bytes of the values
    BF16_DELTAS    for each element its delta in bfloat16
    INT8_DELTAS    for every 256 elements, and for the rest, a binary32 scale; then the deltas of all tensors
                   of fewer than two dimensions, plainly, in binary32; then for each element of the run
                   an int8 from -127 to 127, which is the delta in units of its scale, or 0 where the
                   delta is plain: that one has no part in the scale (`cairn/model/segments.py` says why)

In a payload in deltas every run begins at a multiple of 8, after zero bytes, so that all values are aligned.
A WHOLE payload is the model's, without any such byte, and its digest is that of the model's file. Any other
digest is the BLAKE3 of the encoding's word and a newline, the header of the model's file and the payload.

Each delta is one number of binary64: an int8 times a binary32 has at most 31 significant bits, a plain one 24.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from cairn.errors import UpdateRefused
from cairn.model.schema import Schema
from cairn.model.segments import LARGEST_QUANTUM, SCALE_BLOCK, Segment
from cairn.model.validation import BLOCK, Bounds, check_values, magnitudes_of, runs_of
from cairn.runtime.buffer import Buffer
from cairn.v1 import round_pb2 as pb

# What a digest begins with: a part of its definition, whatever the encodings are called elsewhere.
_DIGESTED_FIRST = {
    pb.ENCODING_BF16_DELTAS: b"bf16_deltas\n",
    pb.ENCODING_INT8_DELTAS: b"int8_deltas\n",
}
_ENCODED = frozenset({"F32", "F64"})
_ALIGNMENT = 8
_BF16_INFINITY = 0x7F80
_LARGEST_PLAIN = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class UpdateLayout:
    """Where everything lies in the update of a model that travels in this encoding."""

    schema: Schema
    encoding: "pb.Encoding"

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(self._placed())

    @property
    def total_bytes(self) -> int:
        return self.segments[-1].end if self.segments else 0

    def hasher(self) -> blake3:
        """A BLAKE3 that has seen all that comes before the payload: feed it the payload."""
        if self.encoding == pb.ENCODING_WHOLE:
            return self.schema.hasher()
        hasher = blake3(_DIGESTED_FIRST[self.encoding])
        hasher.update(self.schema.header())
        return hasher

    def digest(self, payload: Buffer) -> bytes:
        """The digest of the update with this payload."""
        hasher = self.hasher()
        hasher.update(payload)
        return hasher.digest()

    def gaps(self) -> Iterator[slice]:
        """The zero bytes between the runs."""
        for before, after in pairwise(self.segments):
            if before.end < after.begin:
                yield slice(before.end, after.begin)

    def _placed(self) -> Iterator[Segment]:
        end = 0
        for run in runs_of(self.schema):
            own = Schema(tuple(t for t in self.schema.tensors if t.dtype == run.dtype))
            encoding = self.encoding if run.dtype in _ENCODED else pb.ENCODING_WHOLE
            whole = self.encoding == pb.ENCODING_WHOLE
            begin = end if whole else -(-end // _ALIGNMENT) * _ALIGNMENT
            segment = Segment(run, begin, encoding, own)
            end = segment.end
            yield segment


def decoded(
    segment: Segment, payload: Buffer, block: slice, out: NDArray[np.float64]
) -> NDArray[Any]:
    """The elements of one block of the run: its deltas where the segment is one of deltas, else its values.

    The block begins at a multiple of `SCALE_BLOCK`. Deltas are written to the beginning of `out`,
    which holds a block, and are exact; values are returned in place.
    """
    if not segment.is_delta:
        return segment.values(payload)[block]
    terms = out[: block.stop - block.start]
    if segment.encoding == pb.ENCODING_BF16_DELTAS:
        np.copyto(terms, segment.halves(payload)[block])
        return terms
    np.copyto(terms, segment.quanta(payload)[block])
    for rows, scales in by_scale(
        terms, segment.scales(payload)[scales_of(block)].astype(np.float64)
    ):
        np.multiply(rows, scales, out=rows)
    plain_deltas = segment.plain_deltas(payload)
    for here, numbers in segment.plain.slices(block):
        terms[here] = plain_deltas[numbers]
    return terms


def scales_of(block: slice) -> slice:
    """Which scales belong to a block of elements."""
    return slice(block.start // SCALE_BLOCK, -(-block.stop // SCALE_BLOCK))


def by_scale(
    terms: NDArray[np.float64], scales: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The elements in place, as rows of one scale each, and the column of these; then the rest."""
    rows, rest = divmod(len(terms), SCALE_BLOCK)
    if rows:
        yield terms[: rows * SCALE_BLOCK].reshape(rows, SCALE_BLOCK), scales[:rows, None]
    if rest:
        yield terms[rows * SCALE_BLOCK :][None], scales[rows:, None]


def check_update(layout: UpdateLayout, payload: Buffer, bounds: Bounds) -> None:
    """Refuse an update that must not be used, as `cairn.model.validation.check_values` does for a model.

    Between two values within the bounds, a delta is at most twice the bound. Raises UpdateRefused with
    CORRUPT_UPDATE for what no owner writes: another length, a scale below zero, a quantum of -128 or
    beside a plain delta, and a byte between the runs that is not zero.
    """
    if layout.encoding == pb.ENCODING_WHOLE:
        check_values(layout.schema, payload, bounds)
        return
    view = memoryview(payload).cast("B")
    if len(view) != layout.total_bytes:
        raise UpdateRefused(
            f"the update has {len(view)} bytes, its layout {layout.total_bytes}",
            pb.REASON_CORRUPT_UPDATE,
        )
    if any(any(view[gap]) for gap in layout.gaps()):
        raise UpdateRefused(
            "a byte between the runs of the update is not zero", pb.REASON_CORRUPT_UPDATE
        )
    for segment in layout.segments:
        if segment.encoding == pb.ENCODING_BF16_DELTAS:
            _check_halves(segment, view, 2 * bounds.value)
        elif segment.encoding == pb.ENCODING_INT8_DELTAS:
            _check_scales(segment, view, 2 * bounds.value)
            _check_plain(segment, view, 2 * bounds.value)
            _check_quanta(segment, view)
        else:
            check_values(segment.schema, view[segment.begin : segment.end], bounds)


def _check_halves(segment: Segment, payload: Buffer, limit: float) -> None:
    most = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)  # type: ignore[no-untyped-call]  # not annotated
    largest = np.array(min(limit, most)).astype(ml_dtypes.bfloat16)
    highest = int(largest.view(np.uint16)) - int(float(largest) > limit)
    halves = segment.halves(payload)
    for block in segment.run.blocks():
        magnitudes = magnitudes_of(halves[block])
        if magnitudes.max() > highest:
            element = int(magnitudes.argmax())
            infinite = magnitudes[element] >= _BF16_INFINITY
            raise _refusal(segment, block.start + element, is_finite=not infinite)


def _check_scales(segment: Segment, payload: Buffer, limit: float) -> None:
    scales = segment.scales(payload)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        good = ~np.signbit(scales) & (scales.astype(np.float64) * LARGEST_QUANTUM <= limit)
    if good.all():
        return
    bad = int(good.argmin())
    element = bad * SCALE_BLOCK
    other = segment.plain.first_other(element)
    if other < min(element + SCALE_BLOCK, segment.run.count):
        element = other  # the first whose scale it is
    scale = float(scales[bad])
    if scale <= 0:
        raise UpdateRefused(
            f"a scale of tensor {segment.tensor_name(element)} is below zero",
            pb.REASON_CORRUPT_UPDATE,
        )
    raise _refusal(segment, element, is_finite=math.isfinite(scale))


def _check_plain(segment: Segment, payload: Buffer, limit: float) -> None:
    deltas, most = segment.plain_deltas(payload), min(limit, _LARGEST_PLAIN)
    for begin in range(0, len(deltas), BLOCK):
        with np.errstate(invalid="ignore"):  # a signalling NaN
            good = np.abs(deltas[begin : begin + BLOCK].astype(np.float64)) <= most
        if not good.all():
            number = begin + int(good.argmin())
            is_finite = bool(np.isfinite(deltas[number]))
            raise _refusal(segment, segment.plain.element(number), is_finite=is_finite)


def _check_quanta(segment: Segment, payload: Buffer) -> None:
    every = segment.quanta(payload)
    for block in segment.run.blocks():
        quanta, edges = every[block], segment.plain.edges_in(block)
        if quanta.min() < -LARGEST_QUANTUM:
            name = segment.tensor_name(block.start + int(quanta.argmin()))
            raise UpdateRefused(
                f"tensor {name} has a delta of -128 scales", pb.REASON_CORRUPT_UPDATE
            )
        # Of what lies from each edge to the next, every second is a plain stretch.
        inner = [edge for edge in edges if edge < len(quanta)]
        stretches = np.bitwise_or.reduceat(quanta, inner)[::2] if inner else quanta[:0]
        if stretches.any():
            bad = inner[2 * int((stretches != 0).argmax())]
            name = segment.tensor_name(block.start + bad + int((quanta[bad:] != 0).argmax()))
            raise UpdateRefused(
                f"tensor {name} has deltas beside its plain ones", pb.REASON_CORRUPT_UPDATE
            )


def _refusal(segment: Segment, element: int, *, is_finite: bool) -> UpdateRefused:
    name = segment.tensor_name(element)
    if not is_finite:
        return UpdateRefused(
            f"tensor {name} has a delta that is NaN or infinite", pb.REASON_NON_FINITE
        )
    return UpdateRefused(
        f"tensor {name} has a delta beyond the largest that is allowed",
        pb.REASON_MAGNITUDE_REFUSED,
    )
