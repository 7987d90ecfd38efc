"""Which values of a model may be used: no NaN, no infinity, nothing beyond the bounds."""

import math
import sys
import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cairn.errors import UpdateRefused
from cairn.model.schema import DTYPES, FLOATS, Schema, TensorSpec
from cairn.model.validation import BLOCK, Bounds, check_values, pieces_without_negative_zeros
from cairn.v1 import round_pb2 as pb

WIDEST = Bounds(sys.float_info.max, 1 << 63)
EXPONENTS = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF0000000000000}
INTEGERS = ("U8", "I8", "I16", "I32", "I64")


def schema_of(dtype: str, count: int) -> Schema:
    return Schema.of([TensorSpec("t", dtype, (count,))])


def finite(dtype: str, patterns: NDArray[Any]) -> NDArray[Any]:
    """The finite values among these bit patterns: not all bits of their exponents are set."""
    chosen: NDArray[Any] = patterns[(patterns & EXPONENTS[dtype]) != EXPONENTS[dtype]]
    return chosen.view(DTYPES[dtype])


def reason_for(dtype: str, values: NDArray[Any], bounds: Bounds) -> "pb.Reason":
    """Why these values are refused; unspecified where they are taken."""
    try:
        check_values(schema_of(dtype, len(values)), values.tobytes(), bounds)
    except UpdateRefused as error:
        return error.reason
    return pb.REASON_UNSPECIFIED


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("position", "name"),
    [
        (0, "a"),
        (BLOCK - 1, "a"),
        (BLOCK, "a"),
        (BLOCK + 4, "a"),
        (BLOCK + 5, "b"),
        (2 * BLOCK, "b"),
        (-1, "c"),
    ],
)
def test_a_value_that_is_not_finite_is_refused_wherever_it_stands(
    dtype: str, value: float, position: int, name: str
) -> None:
    schema = Schema.of(
        [
            TensorSpec("a", dtype, (BLOCK + 5,)),
            TensorSpec("a.empty", dtype, (0,)),
            TensorSpec("b", dtype, (BLOCK, 2)),
            TensorSpec("c", dtype, ()),
            TensorSpec("other", "U8", (3,)),
        ]
    )
    values = np.zeros(3 * BLOCK + 6, DTYPES[dtype])
    check_values(schema, values.tobytes() + bytes(3), WIDEST)
    values[position] = value
    with pytest.raises(UpdateRefused) as caught:
        check_values(schema, values.tobytes() + bytes(3), WIDEST)
    assert str(caught.value) == f"tensor {name} has a value that is NaN or infinite"
    assert caught.value.reason == pb.REASON_NON_FINITE


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@pytest.mark.parametrize("position", [0, BLOCK - 1, BLOCK, BLOCK + 4])
def test_a_zero_with_a_sign_is_refused_where_none_is_taken(dtype: str, position: int) -> None:
    schema, values = schema_of(dtype, BLOCK + 5), np.zeros(BLOCK + 5, DTYPES[dtype])
    values[0] = -1.5
    check_values(schema, values.tobytes(), WIDEST, takes_negative_zeros=False)
    values[position] = -0.0
    check_values(schema, values.tobytes(), WIDEST)
    with pytest.raises(UpdateRefused, match=r"tensor t has a zero with a sign") as caught:
        check_values(schema, values.tobytes(), WIDEST, takes_negative_zeros=False)
    assert caught.value.reason == pb.REASON_MODEL_SUSPECT


@pytest.mark.parametrize("dtype", INTEGERS)
def test_no_integer_is_a_zero_with_a_sign(dtype: str) -> None:
    values = np.array([np.iinfo(DTYPES[dtype]).min, 0], DTYPES[dtype])
    check_values(schema_of(dtype, 2), values.tobytes(), WIDEST, takes_negative_zeros=False)


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_of_models_with_equal_values_the_pieces_are_equal(dtype: str) -> None:
    empty = TensorSpec("empty", dtype, (0,))
    schema = Schema.of([TensorSpec("a", dtype, (BLOCK + 5,)), empty])
    plain = np.linspace(-1, 1, BLOCK + 5).astype(DTYPES[dtype])
    plain[[7, BLOCK, BLOCK + 4]] = 0.0
    signed = plain.copy()
    signed[[7, BLOCK + 4]] = -0.0
    pieces = [
        b"".join(pieces_without_negative_zeros(schema, values.tobytes()))
        for values in (plain, signed)
    ]
    assert pieces == [plain.tobytes()] * 2


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_every_pattern_of_nan_is_refused_and_every_finite_one_taken(dtype: str) -> None:
    size = DTYPES[dtype].itemsize
    upper = np.arange(2**16, dtype=f"u{size}") << (8 * size - 16)
    for patterns in (upper, upper | 1):
        good = finite(dtype, patterns)
        check_values(schema_of(dtype, len(good)), good.tobytes(), WIDEST)
        for bad in patterns[(patterns & EXPONENTS[dtype]) == EXPONENTS[dtype]]:
            with pytest.raises(UpdateRefused):
                check_values(schema_of(dtype, 1), bad.tobytes(), WIDEST)


@pytest.mark.parametrize("position", [0, BLOCK, 2 * BLOCK - 1])
@pytest.mark.parametrize("byte", [2, 255])
def test_a_bool_that_is_neither_0_nor_1_is_refused(position: int, byte: int) -> None:
    payload = bytearray(b"\0\1" * BLOCK)
    check_values(schema_of("BOOL", 2 * BLOCK), payload, WIDEST)
    payload[position] = byte
    with pytest.raises(UpdateRefused, match="tensor t is BOOL") as caught:
        check_values(schema_of("BOOL", 2 * BLOCK), payload, WIDEST)
    assert caught.value.reason == pb.REASON_CORRUPT_UPDATE


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@pytest.mark.parametrize("limit", [1e9, 1.0, 65504.0, 0.1, 3.3895313892515355e38])
def test_a_float_is_refused_from_the_first_value_beyond_the_bound_on(
    dtype: str, limit: float
) -> None:
    """The bound, rounded to the type, is the last value that passes; beyond is refused, by its size."""
    with np.errstate(over="ignore"):
        last = np.array([limit], np.float64).astype(DTYPES[dtype])
    if not np.isfinite(last.astype(np.float64))[0]:
        largest = finite(dtype, np.array([EXPONENTS[dtype] - 1], f"u{DTYPES[dtype].itemsize}"))
        assert reason_for(dtype, largest, Bounds(limit)) == pb.REASON_UNSPECIFIED
        return
    pattern = last.view(f"u{DTYPES[dtype].itemsize}")
    beyond = (pattern + np.array(1, pattern.dtype)).view(DTYPES[dtype])
    for sign in (1, -1):
        assert reason_for(dtype, sign * last, Bounds(limit)) == pb.REASON_UNSPECIFIED
        expected = pb.REASON_MAGNITUDE_REFUSED
        if not np.isfinite(beyond.astype(np.float64))[0]:
            expected = pb.REASON_NON_FINITE
        assert reason_for(dtype, sign * beyond, Bounds(limit)) == expected


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("limit", [1, 100, 40_000, 1 << 31, 1 << 53, (1 << 63) - 1])
def test_an_integer_is_refused_beyond_the_bound_on_either_side(dtype: str, limit: int) -> None:
    info = np.iinfo(DTYPES[dtype])
    edges = {int(info.min), int(info.max), 0, limit, -limit, limit + 1, -limit - 1}
    for edge in sorted(edge for edge in edges if info.min <= edge <= info.max):
        taken = abs(edge) <= limit
        values = np.array([0, edge, 0], DTYPES[dtype])
        reason = reason_for(dtype, values, Bounds(integer=limit))
        assert (reason == pb.REASON_UNSPECIFIED) is taken, edge
        assert taken or reason == pb.REASON_MAGNITUDE_REFUSED


@pytest.mark.parametrize("dtype", [*sorted(FLOATS), *INTEGERS, "BOOL"])
def test_what_may_be_used_by_default_stays_exact_in_binary64(dtype: str) -> None:
    """The defaults take every trained model; a weight and a counter at the bound are in."""
    largest = min(1e9, 65504.0) if dtype == "F16" else 1e9
    values = {"BOOL": [0, 1], "U8": [0, 255], "I8": [-128, 127], "I16": [-(2**15), 2**15 - 1]}
    values |= {"I32": [-(2**31), 2**31 - 1], "I64": [-(2**53), 2**53]}
    chosen: list[Any] = values.get(dtype, [-largest, largest])
    assert reason_for(dtype, np.array(chosen, DTYPES[dtype]), Bounds()) == pb.REASON_UNSPECIFIED
    assert all(Fraction(float(value)) == Fraction(value) for value in chosen)


@pytest.mark.parametrize("nbytes", [0, 7, 9])
def test_a_model_of_another_length_is_refused(nbytes: int) -> None:
    with pytest.raises(UpdateRefused, match=f"{nbytes} bytes, the model 8") as caught:
        check_values(schema_of("F32", 2), bytes(nbytes), WIDEST)
    assert caught.value.reason == pb.REASON_CORRUPT_UPDATE


def test_a_model_without_a_single_value_is_taken() -> None:
    schema = Schema.of([TensorSpec("a", "F32", (0,)), TensorSpec("b", "I64", (2, 0))])
    check_values(schema, b"", WIDEST)


def test_a_refusal_names_the_tensor_and_never_a_value() -> None:
    schema = Schema.of([TensorSpec("a", "F32", (2,)), TensorSpec("b", "F32", (2,))])
    payload = np.array([0, 1, 2, 4242.4], np.float32).tobytes()
    with pytest.raises(UpdateRefused) as caught:
        check_values(schema, payload, Bounds(value=4242.0))
    assert str(caught.value) == "tensor b has a value beyond the largest that is allowed"


def test_the_check_needs_no_memory_in_proportion_to_the_model() -> None:
    schema = Schema.of([TensorSpec(dtype, dtype, (1 << 20,)) for dtype in DTYPES])
    payload = bytes(schema.total_bytes)
    tracemalloc.start()
    try:
        check_values(schema, payload, Bounds())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 9 * BLOCK < schema.total_bytes / 50
