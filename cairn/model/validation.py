"""Looks at the values of a model as it travels: refuses those that must not be used. Pure."""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from cairn.errors import UpdateRefused
from cairn.model.schema import DTYPES, FLOATS, Schema
from cairn.runtime.buffer import Buffer
from cairn.v1 import round_pb2 as pb

SIGNIFICANT_BITS = {"F16": 11, "BF16": 8, "F32": 24, "F64": 53}
BLOCK = 1 << 16  # elements, so that a block of binary64 is 512 KiB and stays in the cache


@dataclass(frozen=True)
class Bounds:
    """The largest absolute value of a floating-point and of an integer element."""

    value: float = 1e9
    integer: int = 1 << 53

    def of(self, dtype: str) -> tuple[Any, Any]:
        """The smallest and the largest allowed element, in the type itself, which may hold no larger."""
        kind = DTYPES[dtype]
        if dtype == "BOOL":
            return np.uint8(0), np.uint8(1)
        if dtype in FLOATS:
            most = float(ml_dtypes.finfo(kind).max)  # type: ignore[no-untyped-call]  # not annotated
            largest = kind.type(min(self.value, most))
            return -largest, largest
        info = np.iinfo(kind)
        return (
            kind.type(max(-self.integer, int(info.min))),
            kind.type(min(self.integer, int(info.max))),
        )


ANY_FINITE = Bounds(value=math.inf, integer=1 << 64)


@dataclass(frozen=True, slots=True)
class DtypeBlock:
    """All tensors of one type: in the canonical order they lie side by side."""

    dtype: str
    begin: int
    count: int

    def values(self, payload: Buffer) -> NDArray[Any]:
        """The elements, in place; bools as the bytes they are."""
        dtype = np.dtype(np.uint8) if self.dtype == "BOOL" else DTYPES[self.dtype]
        return np.frombuffer(payload, dtype, self.count, self.begin)

    def blocks(self) -> Iterator[slice]:
        for start in range(0, self.count, BLOCK):
            yield slice(start, min(start + BLOCK, self.count))

    def tensor_name(self, schema: Schema, element: int) -> str:
        position = self.begin + element * DTYPES[self.dtype].itemsize
        return schema.tensors[bisect_right(schema.offsets, position) - 1].name


def runs_of(schema: Schema) -> Iterator[DtypeBlock]:
    """The runs of a payload, in order."""
    begin = 0
    for dtype, tensors in groupby(schema.tensors, key=lambda tensor: tensor.dtype):
        nbytes = sum(tensor.nbytes for tensor in tensors)
        if nbytes:
            yield DtypeBlock(dtype, begin, nbytes // DTYPES[dtype].itemsize)
        begin += nbytes


def check_length(schema: Schema, payload: Buffer) -> None:
    """Raise UpdateRefused where the payload is not as long as the schema says."""
    if (nbytes := memoryview(payload).nbytes) != schema.total_bytes:
        raise UpdateRefused(
            f"the update has {nbytes} bytes, the model {schema.total_bytes}",
            pb.REASON_CORRUPT_UPDATE,
        )


def check_values(
    schema: Schema, payload: Buffer, bounds: Bounds, *, takes_negative_zeros: bool = True
) -> None:
    """Refuse a model that must not be used: of another length, with a value that is none or too large.

    Raises UpdateRefused with NON_FINITE for a NaN or an infinity, MAGNITUDE_REFUSED beyond the bounds,
    CORRUPT_UPDATE for a bool beyond 0 and 1, and MODEL_SUSPECT for a zero with a sign where none is taken; its
    text names the tensor and never a value. It reads the payload in place and does no arithmetic on it.

    Without negative zeros, models of equal values have equal bytes: no other value that passes has two forms.
    """
    check_length(schema, payload)
    for run in runs_of(schema):
        values, (low, high) = run.values(payload), bounds.of(run.dtype)
        for block in run.blocks():
            if not takes_negative_zeros and run.dtype in FLOATS:
                _check_zeros(schema, run, block, values[block])
            if not _are_within(values[block], low, high):
                with np.errstate(invalid="ignore"):  # a comparison with a signalling NaN
                    good = (values[block] >= low) & (values[block] <= high)
                element = block.start + int(good.argmin())
                name = run.tensor_name(schema, element)
                raise _refusal(run.dtype, name, values[element])


def pieces_without_negative_zeros(schema: Schema, payload: Buffer) -> Iterator[memoryview]:
    """The bytes of a model, with +0.0 for every -0.0: a piece is a part of the payload, or a changed copy."""
    for run in runs_of(schema):
        values = run.values(payload)
        for block in run.blocks():
            piece = values[block]
            if run.dtype in FLOATS and _negative_zeros(piece).any():
                piece = piece.copy()
                clear_negative_zeros(piece)
            yield piece.view(np.uint8).data


def has_negative_zeros(schema: Schema, payload: Buffer) -> bool:
    return any(
        _negative_zeros(run.values(payload)[block]).any()
        for run in runs_of(schema)
        if run.dtype in FLOATS
        for block in run.blocks()
    )


def clear_negative_zeros(values: NDArray[Any]) -> None:
    """Make every -0.0 of these floating-point values +0.0, in place."""
    found = _negative_zeros(values)
    if found.any():
        values[found] = 0


def _check_zeros(schema: Schema, run: DtypeBlock, block: slice, values: NDArray[Any]) -> None:
    found = _negative_zeros(values)
    if found.any():
        name = run.tensor_name(schema, block.start + int(found.argmax()))
        raise UpdateRefused(f"tensor {name} has a zero with a sign (-0.0)", pb.REASON_MODEL_SUSPECT)


def _negative_zeros(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of these floating-point values are -0.0: the sign is their only bit."""
    kind = np.dtype(f"u{values.itemsize}")
    found: NDArray[np.bool_] = values.view(kind) == kind.type(1 << (8 * kind.itemsize - 1))
    return found


def magnitudes_of(values: NDArray[Any]) -> NDArray[Any]:
    """Floating-point values without their signs, as integers of the same order; a NaN's are the largest.

    IEEE 754 has it so. A comparison of integers is fast for every type; NumPy's own of F16 is not.
    """
    kind = np.dtype(f"u{values.itemsize}")
    magnitudes: NDArray[Any] = values.view(kind) & kind.type((1 << 8 * kind.itemsize - 1) - 1)
    return magnitudes


def _are_within(values: NDArray[Any], low: Any, high: Any) -> bool:
    if values.dtype.kind in "iu":
        return bool(values.min() >= low and values.max() <= high)
    return bool(magnitudes_of(values).max() <= magnitudes_of(np.array([high]))[0])


def _refusal(dtype: str, name: str, value: Any) -> UpdateRefused:
    if dtype == "BOOL":
        return UpdateRefused(
            f"tensor {name} is BOOL and has a byte other than 0 and 1", pb.REASON_CORRUPT_UPDATE
        )
    with np.errstate(invalid="ignore"):  # ml_dtypes' own test computes with signalling NaNs
        finite = dtype not in FLOATS or bool(np.isfinite(value))
    if not finite:
        return UpdateRefused(
            f"tensor {name} has a value that is NaN or infinite", pb.REASON_NON_FINITE
        )
    return UpdateRefused(
        f"tensor {name} has a value beyond the largest that is allowed",
        pb.REASON_MAGNITUDE_REFUSED,
    )
