"""The arithmetic of the average, held against exact fractions and plain PyTorch."""

import math
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregator_node.aggregation import mean as averaging
from aggregator_node.aggregation.exact_rounding import Rounding
from aggregator_node.aggregation.exact_sum import BLOCK, ExactSums
from aggregator_node.aggregation.mean import MAX_TOTAL_WEIGHT, MAX_WEIGHT
from cairn.errors import LimitExceeded, UpdateRefused, WrongState
from cairn.model.schema import DTYPES, FLOATS, Schema, TensorSpec
from cairn.model.validation import Bounds, check_values
from cairn.protocol.aggregation import Aggregation
from cairn.runtime.buffer import Buffer
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.aggregation.whole import add_whole

# Precision in bits and exponent of the smallest normal number (IEEE 754; bfloat16 has binary32's).
FORMATS = {"F16": (11, -14), "BF16": (8, -126), "F32": (24, -126), "F64": (53, -1022)}
EXPONENTS = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF0000000000000}
INTEGERS = ("U8", "I8", "I16", "I32", "I64")


class Mean(averaging.Mean):
    """The mean of updates that lie whole in memory."""

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema, Aggregation(), 2)
        self._of = schema

    def add(self, payload: Buffer, weight: int) -> None:
        add_whole(self, self._of, payload, weight)


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
    return np.frombuffer(bytes_of(mean), DTYPES[dtype])


def bytes_of(mean: Mean, base: bytes | None = None) -> bytes:
    mean.begin(lambda _: None, base, are_deltas=base is not None)
    return b"".join(bytes(piece) for piece in mean.result_blocks())


@st.composite
def float_updates(
    draw: st.DrawFn, dtype: str, most_owners: int = 6
) -> tuple[list[NDArray[Any]], list[int]]:
    size = DTYPES[dtype].itemsize
    owners = draw(st.integers(1, most_owners))
    count = draw(st.integers(1, 4))
    # For F64 the sums must stay in range: the top exponents are left to the test of refusals.
    top = (1 << 8 * size) - 1 if dtype != "F64" else 0x7BFFFFFFFFFFFFFF
    exponent = EXPONENTS[dtype]
    pattern = st.integers(0, top).filter(lambda bits: bits & exponent != exponent)
    rows = st.lists(pattern, min_size=count, max_size=count)
    updates = [np.array(draw(rows), f"u{size}").view(DTYPES[dtype]) for _ in range(owners)]
    return updates, draw(st.lists(weights, min_size=owners, max_size=owners))


def exact_mean(column: Sequence[Fraction], by: Sequence[int]) -> Fraction:
    return sum((w * v for w, v in zip(by, column, strict=True)), Fraction(0)) / sum(by)


def means_in_fractions(
    dtype: str, updates: Sequence[NDArray[Any]], by: Sequence[int]
) -> list[Fraction]:
    columns = zip(*(fractions_of(update) for update in updates), strict=True)
    return [nearest(exact_mean(column, by), dtype) for column in columns]


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_mean_of_any_floats_is_the_exact_mean_rounded_once(
    dtype: str, data: st.DataObject
) -> None:
    updates, by = data.draw(float_updates(dtype))
    released = mean_of(dtype, updates, by)
    assert fractions_of(released) == means_in_fractions(dtype, updates, by)


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_order_of_the_updates_gives_the_same_bits(dtype: str, data: st.DataObject) -> None:
    updates, by = data.draw(float_updates(dtype, most_owners=4))
    expected = mean_of(dtype, updates, by).tobytes()
    for order in permutations(range(len(by))):
        again = mean_of(dtype, [updates[i] for i in order], [by[i] for i in order])
        assert again.tobytes() == expected


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64"])
@pytest.mark.parametrize("step", [26, 53, 100])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_terms_that_cancel_across_any_spread_leave_the_exact_mean(
    dtype: str, step: int, data: st.DataObject
) -> None:
    small = st.integers(-255, 255)
    powers = [2.0 ** (30 - step * k) for k in range(4) if 30 - step * k > -120]
    values = data.draw(
        st.lists(
            st.tuples(small, st.sampled_from(powers)).map(lambda x: x[0] * x[1]),
            min_size=1,
            max_size=5,
        )
    )
    # Twice the first one and its negative, so that what is left is far below what was added.
    columns = [*values, values[0], -values[0], -values[0]]
    updates = [np.array([value], DTYPES[dtype]) for value in data.draw(st.permutations(columns))]
    by = data.draw(st.lists(weights, min_size=1, max_size=1)) * len(updates)
    released = mean_of(dtype, updates, by)
    assert fractions_of(released) == means_in_fractions(dtype, updates, by)


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@pytest.mark.parametrize("toward", [-1, 0, 1])
@pytest.mark.parametrize("weight", [1, 3, 1250, 2**29 - 1, 2**30 - 1])
def test_a_mean_at_or_beside_a_tie_is_rounded_once(dtype: str, toward: int, weight: int) -> None:
    # A quarter of two neighbours' sum is a tie; the smallest number there is decides.
    kind = np.dtype(f"u{DTYPES[dtype].itemsize}")
    patterns = np.random.default_rng(3).integers(1, EXPONENTS[dtype] - 2, 400)
    if dtype == "F64":
        patterns = np.minimum(patterns, 0x7BFFFFFFFFFFFFFF)
    low, high = (patterns.astype(kind) + kind.type(i) for i in (0, 1))
    nudge, rest = np.full_like(low, abs(toward)), np.zeros_like(low)
    updates = [bits.view(DTYPES[dtype]) for bits in (low, high, nudge, rest)]
    if toward < 0:
        updates[2] = -updates[2]
    by = [weight, weight, 1, 2 * weight - 1]
    expected = means_in_fractions(dtype, updates, by)
    assert fractions_of(mean_of(dtype, updates, by)) == expected
    assert fractions_of(mean_of(dtype, updates[::-1], by[::-1])) == expected


@pytest.mark.parametrize("dtype", ["F32", "F64"])
@settings(max_examples=75, deadline=None)
@given(data=st.data())
def test_a_mean_of_deltas_is_rounded_once_to_bfloat16_and_added_to_the_base(
    dtype: str, data: st.DataObject
) -> None:
    updates, by = data.draw(float_updates(dtype, most_owners=4))
    base, *deltas = updates
    by = by[: len(deltas)] or [1]
    deltas = deltas or [base]
    mean = Mean(schema_of(dtype, len(base)))
    for delta, weight in zip(deltas, by, strict=True):
        mean.add(delta.tobytes(), weight)
    columns = zip(*(fractions_of(delta) for delta in deltas), strict=True)
    means = [nearest(exact_mean(column, by), "BF16") for column in columns]
    largest = Fraction(2) ** 128 - Fraction(2) ** 120
    with np.errstate(over="ignore"):
        is_beyond = max(map(abs, means)) > largest
        expected = base + np.array([0.0 if is_beyond else float(each) for each in means])
        expected = expected.astype(DTYPES[dtype])
    if is_beyond or not np.isfinite(expected).all():
        with pytest.raises(LimitExceeded, match="tensor t"):
            bytes_of(mean, base.tobytes())
    else:
        released = np.frombuffer(bytes_of(mean, base.tobytes()), DTYPES[dtype])
        assert np.array_equal(released, expected)
    alone = np.frombuffer(bytes_of(mean), DTYPES[dtype])
    assert fractions_of(alone) == means_in_fractions(dtype, deltas, by)


def test_a_base_counts_for_the_types_that_travel_as_deltas_only() -> None:
    updates = [random_update(ALL_TYPES, seed) for seed in range(2)]
    mean = Mean(ALL_TYPES)
    mean.add(updates[0], 3)
    whole = tensors_of(ALL_TYPES, bytes_of(mean))
    added = tensors_of(ALL_TYPES, bytes_of(mean, updates[1]))
    base = tensors_of(ALL_TYPES, updates[1])
    for tensor in ALL_TYPES.tensors:
        expected = whole[tensor.name]
        if tensor.dtype in {"F32", "F64"}:
            halves = expected.astype(ml_dtypes.bfloat16).astype(np.float64)
            expected = (base[tensor.name] + halves).astype(expected.dtype)
        assert np.array_equal(added[tensor.name], expected), tensor


def test_an_update_can_be_read_block_by_block_as_numbers_of_binary64() -> None:
    count, scale = 2 * BLOCK + 5, np.float32(1 / 3)
    quanta = np.random.default_rng(8).integers(-127, 128, (2, count))
    mean, seen = Mean(schema_of("F32", count)), []
    for row, weight in zip(quanta, (60_001, 7), strict=True):

        def read(number: int, block: slice, row: NDArray[Any] = row) -> tuple[NDArray[Any], int]:
            seen.append((number, block))
            return row[block] * np.float64(scale), 31

        mean.add_blocks(read, weight)
    assert all(number == 0 for number, _ in seen)
    assert [i for _, block in seen[: len(seen) // 2] for i in range(count)[block]] == [
        *range(count)
    ]
    released = np.frombuffer(bytes_of(mean), np.float32)
    for place in range(0, count, 997):
        column = [Fraction(int(row[place])) * Fraction(float(scale)) for row in quanta]
        assert Fraction(float(released[place])) == nearest(exact_mean(column, [60_001, 7]), "F32")


def test_nothing_of_a_round_is_left_for_the_next() -> None:
    mean, secret = Mean(ALL_TYPES), random_update(ALL_TYPES, 1)
    mean.add(secret, 12345)
    mean.add(random_update(ALL_TYPES, 2), 2**31 - 3)
    assert bytes_of(mean)
    mean.reset()
    with pytest.raises(WrongState):
        bytes_of(mean)
    assert not np.frombuffer(mean._memory, np.uint8).any()
    assert not mean._rounding._scratch.any()
    for sums in mean._sums:
        if isinstance(sums, ExactSums):
            assert not sums._carries
            assert not sums._floats.any()
    mean.add(random_update(ALL_TYPES, 3), 1)
    assert bytes_of(mean) == random_update(ALL_TYPES, 3)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("by", [[1, 1], [1, 1, 1], [3, 500, 97], [1] * 9, [1000, 1, 7, 64]])
def test_a_mean_of_trained_weights_is_the_exact_mean_rounded_once(
    dtype: str, by: list[int]
) -> None:
    generator = np.random.default_rng(len(by))
    updates = [generator.normal(0, 0.1, 3000).astype(DTYPES[dtype]) for _ in by]
    expected = means_in_fractions(dtype, updates, by)
    assert fractions_of(mean_of(dtype, updates, by)) == expected


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_quotient_beside_a_tie_is_rounded_once(dtype: str) -> None:
    values = finite(dtype, np.arange(0x8000, dtype=np.uint16))
    lower, upper = values[:-1].astype(np.float64), values[1:].astype(np.float64)
    ties = (lower + upper) / 2
    to_even = np.where(np.arange(len(ties)) % 2, upper, lower)
    quotients = np.concatenate([ties, np.nextafter(ties, -np.inf), np.nextafter(ties, np.inf)])
    expected = np.concatenate([to_even, lower, upper])
    rounded = np.empty(len(quotients), DTYPES[dtype])
    for start in range(0, len(quotients), BLOCK):
        block = slice(start, start + BLOCK)
        for sign in (1, -1):
            Rounding().nearest(sign * quotients[block], None, 1, dtype, rounded[block])
            assert np.array_equal(rounded[block].astype(np.float64), sign * expected[block])


def test_a_bf16_mean_just_above_a_tie_is_not_rounded_twice() -> None:
    # (1 + 2**-8 + 2**-38) lies above the middle between 1 and 1 + 2**-7; in binary32 it is the middle.
    low, high = np.array([1], DTYPES["BF16"]), np.array([1 + 2**-7], DTYPES["BF16"])
    by = [2**30 - 1, 2**30 + 1]
    exact = (by[0] + Fraction(1 + 2**-7) * by[1]) / sum(by)
    assert exact == 1 + Fraction(1, 2**8) + Fraction(1, 2**38)
    assert float(mean_of("BF16", [low, high], by)[0]) == 1 + 2**-7


@pytest.mark.parametrize("toward", [-1, 1])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("half", [2**28 + 1, 2**29 + 5])
def test_a_mean_whose_quotient_in_binary64_is_a_tie_goes_to_the_value_that_is_nearer(
    half: int, sign: int, toward: int
) -> None:
    """The sum has room for 53 bits, and the tie times the total weight has more."""
    even = np.arange(2**24, 2**25 - 4, 40001 * 4)  # a tie beside one of these goes to it
    neighbours = even + 2 * toward
    updates = [(sign * bits).astype(np.float32) for bits in (neighbours, even)]
    by = [half + 1, half]
    sums = neighbours * by[0] + even * by[1]
    ties = even + toward
    is_tie = sums.astype(np.float64) / sum(by) == ties
    assert is_tie.sum() > 50
    assert not np.any(sums == ties * sum(by))
    assert fractions_of(mean_of("F32", updates, by)) == means_in_fractions("F32", updates, by)


@pytest.mark.parametrize("spread", [1.0, 1e-39, 1e30])
def test_the_mean_of_two_is_that_of_plain_pytorch_bit_by_bit(spread: float) -> None:
    generator = torch.Generator().manual_seed(4)
    a, b = (torch.randn(100_000, generator=generator) * spread for _ in range(2))
    expected = ((a + b) / 2).numpy()
    assert mean_of("F32", [a.numpy(), b.numpy()], [1, 1]).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@pytest.mark.parametrize("others", [-0.0, 0.0])
def test_a_mean_of_zero_has_no_sign(dtype: str, others: float) -> None:
    minus, other = (np.array([zero], DTYPES[dtype]) for zero in (-0.0, others))
    assert math.copysign(1, mean_of(dtype, [minus, other], [3, 1])[0]) == 1


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_a_mean_that_is_rounded_to_zero_has_no_sign(dtype: str) -> None:
    least = np.array([(1 << (8 * DTYPES[dtype].itemsize - 1)) + 1], f"u{DTYPES[dtype].itemsize}")
    zero = np.zeros(1, DTYPES[dtype])
    mean = mean_of(dtype, [least.view(DTYPES[dtype]), zero], [1, 3])[0]
    assert (mean, math.copysign(1, mean)) == (0, 1)


@pytest.mark.parametrize("dtype", sorted(FLOATS - {"F64"}))
def test_the_largest_values_and_weights_stay_in_range(dtype: str) -> None:
    below_infinity = np.array([EXPONENTS[dtype] - 1], f"u{DTYPES[dtype].itemsize}")
    for largest in (finite(dtype, below_infinity), -finite(dtype, below_infinity)):
        assert mean_of(dtype, [largest] * 9, [MAX_WEIGHT] * 9) == largest


@pytest.mark.parametrize("values", [[1.7e308, 1.7e308], [-1.7e308, -1.7e308]])
def test_an_f64_sum_beyond_the_range_is_not_released(values: list[float]) -> None:
    with pytest.raises(LimitExceeded, match="aggregate of tensor t exceeds the range of F64"):
        mean_of("F64", [np.array([1.0, value]) for value in values], [1, 1])


def test_an_f64_product_beyond_the_range_is_not_released() -> None:
    with pytest.raises(LimitExceeded, match="aggregate of tensor t exceeds the range of F64"):
        mean_of("F64", [np.array([1e308]), np.array([-1e308])], [2**30, 2**30])


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@pytest.mark.parametrize("by", [[1, 1], [3, 4], [MAX_WEIGHT] * 2, [MAX_WEIGHT, 2]])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_never_released(dtype: str, by: list[int], value: float) -> None:
    updates = [np.array([0.1, x, 3], DTYPES[dtype]) for x in (value, 1 / 3)]
    for order in (1, -1):
        with pytest.raises(LimitExceeded, match="aggregate of tensor t"):
            mean_of(dtype, updates[::order], by[::order])


@pytest.mark.parametrize("dtype", INTEGERS)
@settings(max_examples=75, deadline=None)
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
    mean = Mean(ALL_TYPES)
    for update, weight in zip(updates, by, strict=True):
        mean.add(update, weight)
    out = bytes_of(mean)
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
        mean = Mean(ALL_TYPES)
        for update in updates:
            mean.add(memoryview(bytes(shift) + update)[shift:], 5)
        results.append(bytes_of(mean))
    assert results[0] == results[1] == results[2]


def test_the_result_can_be_written_again_and_after_a_further_update() -> None:
    schema = schema_of("I64", 1)
    mean = Mean(schema)
    mean.add(np.array([4]).tobytes(), 1)
    assert bytes_of(mean) == bytes_of(mean) == np.array([4]).tobytes()
    mean.add(np.array([8]).tobytes(), 1)
    assert bytes_of(mean) == np.array([6]).tobytes()


def test_a_model_without_a_single_value_has_a_mean() -> None:
    schema = Schema.of([TensorSpec("a", "F32", (0,)), TensorSpec("b", "I64", (2, 0))])
    mean = Mean(schema)
    mean.add(b"", 1)
    assert bytes_of(mean) == b""
    mean.reset()


def test_there_is_no_mean_of_no_update() -> None:
    with pytest.raises(WrongState):
        bytes_of(Mean(schema_of("F32", 1)))


@pytest.mark.parametrize("weight", [0, -1, MAX_WEIGHT + 1])
def test_a_weight_out_of_range_is_refused(weight: int) -> None:
    with pytest.raises(UpdateRefused, match="a weight is 1 to 2147483647") as caught:
        Mean(schema_of("F32", 1)).add(bytes(4), weight)
    assert caught.value.reason == pb.REASON_EXAMPLES_REFUSED


def test_a_total_weight_out_of_range_is_refused_and_changes_nothing() -> None:
    mean = Mean(schema_of("I8", 1))
    for _ in range(1024):
        mean.add(b"\x05", MAX_WEIGHT)
    with pytest.raises(LimitExceeded):
        mean.add(b"\x09", 1025)
    assert bytes_of(mean) == b"\x05"


def test_no_step_needs_memory_in_proportion_to_the_model() -> None:
    schema = Schema.of([TensorSpec(dtype, dtype, (1 << 20,)) for dtype in DTYPES])
    payload = bytes(schema.total_bytes)
    mean = Mean(schema)
    mean.begin(lambda _: None, payload, are_deltas=True)
    tracemalloc.start()
    try:
        for weight in (1, 3):
            check_values(schema, payload, Bounds())
            mean.add(payload, weight)
        for piece in mean.result_blocks():
            assert len(piece) <= 4 * 8 * BLOCK
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * 8 * BLOCK < schema.total_bytes / 5


def test_trained_weights_need_next_to_no_memory_below_the_first_level() -> None:
    count, generator = 1 << 20, np.random.default_rng(9)
    trained = generator.normal(0, 0.1, count)
    mean = Mean(schema_of("F32", count))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for weight in (60_001, 45_677, 98_765):
            mean.add(
                (trained + generator.normal(0, 1e-3, count)).astype(np.float32).tobytes(), weight
            )
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < count / 8


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_trained_weights_of_any_type_ask_for_no_memory_beyond_what_is_reckoned(
    monkeypatch: pytest.MonkeyPatch, dtype: str, *, weighted: bool
) -> None:
    """Else a round could be aborted for want of memory although nobody sent anything strange."""
    monkeypatch.setattr(averaging, "_ASK_BYTES", 1)
    count, generator = 1 << 20, np.random.default_rng(9)
    trained = generator.normal(0, 0.1, count)
    mean = Mean(schema_of(dtype, count))
    asked: list[int] = []
    mean.begin(asked.append)
    for number in range(5):
        update = (trained + generator.normal(0, 1e-3, count)).astype(DTYPES[dtype])
        mean.add(update.tobytes(), 12_345 + 10_007 * number if weighted else 1)
    assert asked == []


def test_averaging_imports_no_torch() -> None:
    program = "import sys, aggregator_node.aggregation.mean; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
