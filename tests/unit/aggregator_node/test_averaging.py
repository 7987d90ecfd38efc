"""The arithmetic of the average, held against exact fractions and plain PyTorch."""

import math
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregator_node.averaging import (
    MAX_TOTAL_WEIGHT,
    MAX_WEIGHT,
    Mean,
    average_metrics,
)
from cairn.errors import TooMuch, UpdateRefused, WrongState
from cairn.tensors import DTYPES, FLOATS, Schema, TensorSpec
from cairn.v1 import round_pb2 as pb
from cairn.values import Bounds, check_values

BLOCK = 1 << 16
# Precision in bits and exponent of the smallest normal number (IEEE 754; bfloat16 has binary32's).
FORMATS = {"F16": (11, -14), "BF16": (8, -126), "F32": (24, -126), "F64": (53, -1022)}
EXPONENTS = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF0000000000000}
INTEGERS = ("U8", "I8", "I16", "I32", "I64")
weights = st.one_of(st.integers(1, 9), st.integers(1, MAX_WEIGHT), st.just(MAX_WEIGHT))


def nearest(value: Fraction, form: str) -> Fraction:
    """Round to a floating-point format, to nearest, ties to even; values beyond its range excepted."""
    precision, smallest = FORMATS[form]
    exponent = abs(value).numerator.bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** (max(exponent, smallest) - precision + 1)
    return round(value / step) * step


def finite(dtype: str, patterns: NDArray[Any]) -> NDArray[Any]:
    """The finite values among these bit patterns: not all bits of their exponents are set."""
    chosen: NDArray[Any] = patterns[(patterns & EXPONENTS[dtype]) != EXPONENTS[dtype]]
    return chosen.view(DTYPES[dtype])


def fractions_of(values: NDArray[Any]) -> list[Fraction]:
    return [Fraction(float(v)) if v.dtype.kind in "fV" else Fraction(int(v)) for v in values]


def schema_of(dtype: str, count: int) -> Schema:
    return Schema.of([TensorSpec("t", dtype, (count,))])


def mean_of(dtype: str, updates: Sequence[NDArray[Any]], by: Sequence[int]) -> NDArray[Any]:
    schema = schema_of(dtype, len(updates[0]))
    mean = Mean(schema)
    for update, weight in zip(updates, by, strict=True):
        assert update.dtype == DTYPES[dtype]
        mean.add(update.tobytes(), weight)
    out = bytearray(schema.total_bytes)
    mean.result(out)
    return np.frombuffer(out, DTYPES[dtype])


@st.composite
def float_updates(draw: st.DrawFn, dtype: str) -> tuple[list[NDArray[Any]], list[int]]:
    size = DTYPES[dtype].itemsize
    owners = draw(st.integers(1, 6))
    count = draw(st.integers(1, 4))
    # For F64 the sums must stay in range: the top exponents are left to the test of refusals.
    top = (1 << 8 * size) - 1 if dtype != "F64" else 0x7BFFFFFFFFFFFFFF
    exponent = EXPONENTS[dtype]
    pattern = st.integers(0, top).filter(lambda bits: bits & exponent != exponent)
    rows = st.lists(pattern, min_size=count, max_size=count)
    updates = [np.array(draw(rows), f"u{size}").view(DTYPES[dtype]) for _ in range(owners)]
    return updates, draw(st.lists(weights, min_size=owners, max_size=owners))


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mean_of_floats_follows_the_rule_step_by_step(dtype: str, data: st.DataObject) -> None:
    updates, by = data.draw(float_updates(dtype))
    sums = [Fraction(0)] * len(updates[0])
    for update, weight in zip(updates, by, strict=True):
        terms = [nearest(value * weight, "F64") for value in fractions_of(update)]
        sums = [nearest(s + term, "F64") for s, term in zip(sums, terms, strict=True)]
    expected = [nearest(nearest(s / sum(by), "F64"), dtype) for s in sums]
    assert fractions_of(mean_of(dtype, updates, by)) == expected


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("by", [[1, 1], [1, 1, 1], [3, 500, 97], [1] * 9, [1000, 1, 7, 64]])
def test_a_mean_of_trained_weights_is_the_exact_mean_rounded_once(
    dtype: str, by: list[int]
) -> None:
    generator = np.random.default_rng(len(by))
    updates = [generator.normal(0, 0.1, 3000).astype(DTYPES[dtype]) for _ in by]
    columns = zip(*(fractions_of(update) for update in updates), strict=True)
    expected = [
        nearest(sum((w * v for w, v in zip(by, column, strict=True)), Fraction(0)) / sum(by), dtype)
        for column in columns
    ]
    assert fractions_of(mean_of(dtype, updates, by)) == expected


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mean_of_any_f16_values_is_the_exact_mean_rounded_once(data: st.DataObject) -> None:
    updates, _ = data.draw(float_updates("F16"))
    by = data.draw(st.lists(st.integers(1, 100), min_size=len(updates), max_size=len(updates)))
    columns = zip(*(fractions_of(update) for update in updates), strict=True)
    expected = [
        nearest(sum((w * v for w, v in zip(by, column, strict=True)), Fraction(0)) / sum(by), "F16")
        for column in columns
    ]
    assert fractions_of(mean_of("F16", updates, by)) == expected


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_quotient_beside_a_tie_is_rounded_once(dtype: str) -> None:
    values = finite(dtype, np.arange(0x8000, dtype=np.uint16))
    lower, upper = values[:-1].astype(np.float64), values[1:].astype(np.float64)
    ties = (lower + upper) / 2
    to_even = np.where(np.arange(len(ties)) % 2, upper, lower)
    quotients = np.concatenate([ties, np.nextafter(ties, -np.inf), np.nextafter(ties, np.inf)])
    expected = np.concatenate([to_even, lower, upper])
    for sign in (1, -1):
        mean = Mean(schema_of(dtype, len(quotients)))
        mean._sums[0][:] = sign * quotients
        mean._total_weight = 1
        out = bytearray(2 * len(quotients))
        mean.result(out)
        assert np.array_equal(np.frombuffer(out, DTYPES[dtype]).astype(np.float64), sign * expected)


def test_a_bf16_mean_just_above_a_tie_is_not_rounded_twice() -> None:
    # (1 + 2**-8 + 2**-38) lies above the middle between 1 and 1 + 2**-7; in binary32 it is the middle.
    low, high = np.array([1], DTYPES["BF16"]), np.array([1 + 2**-7], DTYPES["BF16"])
    by = [2**30 - 1, 2**30 + 1]
    exact = (by[0] + Fraction(1 + 2**-7) * by[1]) / sum(by)
    assert exact == 1 + Fraction(1, 2**8) + Fraction(1, 2**38)
    assert float(mean_of("BF16", [low, high], by)[0]) == 1 + 2**-7


@pytest.mark.parametrize("spread", [1.0, 1e-39, 1e30])
def test_the_mean_of_two_is_that_of_plain_pytorch_bit_by_bit(spread: float) -> None:
    generator = torch.Generator().manual_seed(4)
    a, b = (torch.randn(100_000, generator=generator) * spread for _ in range(2))
    expected = ((a + b) / 2).numpy()
    assert mean_of("F32", [a.numpy(), b.numpy()], [1, 1]).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_zero_keeps_the_sign_on_which_all_agree(dtype: str) -> None:
    minus, plus = (np.array([zero], DTYPES[dtype]) for zero in (-0.0, 0.0))
    assert math.copysign(1, mean_of(dtype, [minus, minus], [1, 3])[0]) == -1
    assert math.copysign(1, mean_of(dtype, [minus, plus], [3, 1])[0]) == 1


@pytest.mark.parametrize("dtype", sorted(FLOATS - {"F64"}))
def test_the_largest_values_and_weights_stay_in_range(dtype: str) -> None:
    below_infinity = np.array([EXPONENTS[dtype] - 1], f"u{DTYPES[dtype].itemsize}")
    for largest in (finite(dtype, below_infinity), -finite(dtype, below_infinity)):
        assert mean_of(dtype, [largest] * 9, [MAX_WEIGHT] * 9) == largest


@pytest.mark.parametrize("values", [[1.7e308, 1.7e308], [-1.7e308, -1.7e308]])
def test_an_f64_sum_beyond_the_range_is_not_released(values: list[float]) -> None:
    with pytest.raises(TooMuch, match="sum of tensor t exceeds"):
        mean_of("F64", [np.array([1.0, value]) for value in values], [1, 1])


def test_an_f64_product_beyond_the_range_is_not_released() -> None:
    with pytest.raises(TooMuch, match="sum of tensor t exceeds"):
        mean_of("F64", [np.array([1e308]), np.array([-1e308])], [2**30, 2**30])


@pytest.mark.parametrize("dtype", INTEGERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mean_of_integers_is_exact_and_rounds_ties_to_even(
    dtype: str, data: st.DataObject
) -> None:
    limits = np.iinfo(DTYPES[dtype])
    value = st.one_of(
        st.integers(int(limits.min), int(limits.max)),
        st.sampled_from([int(limits.min), int(limits.max)]),
        st.integers(0, 9),
    )
    owners = data.draw(st.lists(st.tuples(value, value, weights), min_size=1, max_size=8))
    updates = [np.array([a, b], DTYPES[dtype]) for a, b, _ in owners]
    by = [weight for _, _, weight in owners]
    expected = [
        round(Fraction(sum(int(u[i]) * w for u, w in zip(updates, by, strict=True)), sum(by)))
        for i in range(2)
    ]
    assert mean_of(dtype, updates, by).tolist() == expected


def test_the_extremes_of_int64_survive_1024_owners_of_the_largest_weight() -> None:
    limits = np.iinfo(np.int64)
    update = np.array([limits.max, limits.min, -1, 0, 2**44 - 1, -(2**44) - 1], np.int64)
    assert np.array_equal(mean_of("I64", [update] * 1024, [MAX_WEIGHT] * 1024), update)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_the_extremes_of_every_integer_survive_the_largest_total_weight(dtype: str) -> None:
    limits = np.iinfo(DTYPES[dtype])
    update = np.array([limits.max, limits.min], DTYPES[dtype])
    by = [MAX_WEIGHT] * 1024 + [1024]
    assert sum(by) == MAX_TOTAL_WEIGHT
    assert np.array_equal(mean_of(dtype, [update] * len(by), by), update)


def test_counters_of_batches_are_averaged_to_the_nearest_even() -> None:
    updates = [np.array([count, 7 * count]) for count in (10, 11)]
    assert mean_of("I64", updates, [1, 1]).tolist() == [10, 74]  # 10.5 and 73.5


@pytest.mark.parametrize(
    ("by", "expected"),
    [([1, 1, 1], [True, False]), ([1, 1, 2], [False, False]), ([1, 1, 3], [False, True])],
)
def test_a_bool_is_true_above_one_half_and_false_at_a_tie(
    by: list[int], expected: list[bool]
) -> None:
    updates = [np.array(row) for row in ([True, False], [True, False], [False, True])]
    assert mean_of("BOOL", updates, by).tolist() == expected


def test_a_weight_counts_like_as_many_owners() -> None:
    a, b = np.array([0.1, 7], np.float32), np.array([0.7, -3], np.float32)
    assert np.array_equal(mean_of("F32", [a, b], [3, 1]), mean_of("F32", [a, a, a, b], [1] * 4))


def test_the_mean_of_equal_updates_is_the_update() -> None:
    update = finite("F32", np.random.default_rng(6).integers(0, 2**32, 5000, np.uint32))
    assert mean_of("F32", [update] * 7, [1] * 7).tobytes() == update.tobytes()


ALL_TYPES = Schema.of(
    [TensorSpec(f"many.{dtype}", dtype, (BLOCK + 77,)) for dtype in DTYPES]
    + [TensorSpec(f"scalar.{dtype}", dtype, ()) for dtype in DTYPES]
    + [TensorSpec(f"empty.{dtype}", dtype, (3, 0)) for dtype in DTYPES]
)


def random_update(schema: Schema, seed: int) -> bytes:
    generator = np.random.default_rng(seed)
    parts = []
    for tensor in schema.tensors:
        count = math.prod(tensor.shape)
        if tensor.dtype in FLOATS:
            parts.append(generator.normal(0, 1, count).astype(DTYPES[tensor.dtype]))
        else:
            high = 2 if tensor.dtype == "BOOL" else 100
            parts.append(generator.integers(0, high, count).astype(DTYPES[tensor.dtype]))
    return b"".join(part.tobytes() for part in parts)


def tensors_of(schema: Schema, payload: bytes | bytearray) -> dict[str, NDArray[Any]]:
    return {
        tensor.name: np.frombuffer(payload, np.uint8)[begin:end].view(DTYPES[tensor.dtype])
        for tensor, begin, end in zip(
            schema.tensors, schema.offsets, schema.offsets[1:], strict=False
        )
    }


def test_each_tensor_of_a_model_of_all_types_is_averaged_as_if_it_were_alone() -> None:
    updates, by = [random_update(ALL_TYPES, seed) for seed in range(3)], [1, 5, 2]
    mean, out = Mean(ALL_TYPES), bytearray(ALL_TYPES.total_bytes)
    for update, weight in zip(updates, by, strict=True):
        mean.add(update, weight)
    mean.result(out)
    parts = [tensors_of(ALL_TYPES, update) for update in updates]
    for tensor in ALL_TYPES.tensors:
        released = tensors_of(ALL_TYPES, out)[tensor.name]
        if released.size:
            alone = mean_of(tensor.dtype, [part[tensor.name] for part in parts], by)
            assert released.tobytes() == alone.tobytes(), tensor


def test_the_same_order_gives_the_same_bits_from_unaligned_memory_too() -> None:
    updates = [random_update(ALL_TYPES, seed) for seed in range(3)]
    results = []
    for shift in (0, 1, 3):
        mean, out = Mean(ALL_TYPES), bytearray(ALL_TYPES.total_bytes + shift)
        for update in updates:
            mean.add(memoryview(bytes(shift) + update)[shift:], 5)
        mean.result(memoryview(out)[shift:])
        results.append(bytes(out[shift:]))
    assert results[0] == results[1] == results[2]


def test_the_result_can_be_written_again_and_after_a_further_update() -> None:
    schema = schema_of("I64", 1)
    mean, first, second = Mean(schema), bytearray(8), bytearray(8)
    mean.add(np.array([4]).tobytes(), 1)
    mean.result(first)
    mean.result(second)
    assert first == second == np.array([4]).tobytes()
    mean.add(np.array([8]).tobytes(), 1)
    mean.result(second)
    assert second == np.array([6]).tobytes()


def test_a_model_without_a_single_value_has_a_mean() -> None:
    schema = Schema.of([TensorSpec("a", "F32", (0,)), TensorSpec("b", "I64", (2, 0))])
    mean, out = Mean(schema), bytearray()
    mean.add(b"", 1)
    mean.result(out)
    assert out == b""


def test_there_is_no_mean_of_no_update() -> None:
    with pytest.raises(WrongState):
        Mean(schema_of("F32", 1)).result(bytearray(4))


@pytest.mark.parametrize("weight", [0, -1, MAX_WEIGHT + 1])
def test_a_weight_out_of_range_is_refused(weight: int) -> None:
    with pytest.raises(UpdateRefused, match="a weight is 1 to 2147483647") as caught:
        Mean(schema_of("F32", 1)).add(bytes(4), weight)
    assert caught.value.reason == pb.REASON_EXAMPLES_REFUSED


def test_a_total_weight_out_of_range_is_refused_and_changes_nothing() -> None:
    mean, out = Mean(schema_of("I8", 1)), bytearray(1)
    for _ in range(1024):
        mean.add(b"\x05", MAX_WEIGHT)
    with pytest.raises(TooMuch):
        mean.add(b"\x09", 1025)
    mean.result(out)
    assert out == b"\x05"


@pytest.mark.parametrize("nbytes", [0, 7, 9])
def test_an_update_of_another_length_is_refused(nbytes: int) -> None:
    schema = schema_of("F32", 2)
    with pytest.raises(UpdateRefused, match=f"{nbytes} bytes, the model 8") as caught:
        Mean(schema).add(bytes(nbytes), 1)
    assert caught.value.reason == pb.REASON_CORRUPT_UPDATE


def test_no_step_needs_memory_in_proportion_to_the_model() -> None:
    schema = Schema.of([TensorSpec(dtype, dtype, (1 << 20,)) for dtype in DTYPES])
    payload, out = bytes(schema.total_bytes), bytearray(schema.total_bytes)
    mean = Mean(schema)
    tracemalloc.start()
    try:
        for weight in (1, 3):
            check_values(schema, payload, Bounds())
            mean.add(payload, weight)
        mean.result(out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * 8 * BLOCK < schema.total_bytes / 5


def test_metrics_are_the_exact_weighted_mean_rounded_once() -> None:
    generator = random.Random(5)  # data of a test, no secret
    reports = [({"loss": generator.uniform(-1, 1)}, generator.randint(1, 1000)) for _ in range(50)]
    exact = sum(Fraction(m["loss"]) * w for m, w in reports) / sum(w for _, w in reports)
    assert average_metrics(reports) == {"loss": float(exact)}


def test_metrics_do_not_depend_on_the_order_of_the_reports() -> None:
    reports = [({"loss": 1e300}, 1), ({"loss": 1.0}, 1), ({"loss": -1e300}, 1)]
    assert average_metrics(reports) == average_metrics(reports[::-1]) == {"loss": 1 / 3}


def test_metrics_at_the_edge_of_the_range_have_a_mean() -> None:
    largest = sys.float_info.max
    assert average_metrics([({"loss": largest}, MAX_WEIGHT)] * 3) == {"loss": largest}


def test_a_metric_that_one_owner_lacks_is_left_out() -> None:
    reports = [({"loss": 1.0, "b": 3.0, "a": 2.0}, 1), ({"a": 4.0, "b": 5.0}, 3)]
    averaged = average_metrics(reports)
    assert averaged == {"a": 3.5, "b": 4.5}
    assert list(averaged) == ["a", "b"]


def test_no_report_gives_no_metric() -> None:
    assert average_metrics([]) == {}


def test_averaging_imports_no_torch() -> None:
    program = "import sys, aggregator_node.averaging; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
