"""What travels of an update, against exact arithmetic and plain NumPy."""

import math
import tracemalloc
from bisect import bisect_left
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cairn.errors import UpdateRefused
from cairn.model.schema import DTYPES, Schema, TensorSpec
from cairn.model.update_encoding import UpdateLayout, check_update, decoded
from cairn.model.validation import BLOCK, Bounds
from cairn.protocol.words import ENCODINGS
from cairn.v1 import round_pb2 as pb
from owner_node.updates.encoder import Change, encode, length

_, BF16, INT8 = ENCODINGS.values()
DELTAS = [BF16, INT8]
HALVES = np.arange(0x7F80, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float64).tolist()
Values = dict[str, NDArray[Any]]


def payload_of(values: Values) -> bytearray:
    order = sorted(values, key=list(DTYPES).index, reverse=True)
    return bytearray(b"".join(values[dtype].tobytes() for dtype in order))


def schema_of(values: Values) -> Schema:
    """A tensor of each type, of two dimensions, called as it is."""
    return Schema.of([TensorSpec(dtype, dtype, (1, *v.shape)) for dtype, v in values.items()])


def sent(
    encoding: "pb.Encoding", base: Values, update: Values, factor: float = 1.0
) -> tuple[UpdateLayout, bytearray]:
    layout = UpdateLayout(schema_of(base), encoding)
    out = bytearray(b"\xaa" * layout.total_bytes)  # what an earlier round has left there
    encode(layout, Change(payload_of(base), payload_of(update), factor=factor), out)
    check_update(layout, out, Bounds(value=1e38, integer=1 << 62))
    return layout, out


def said(layout: UpdateLayout, payload: bytearray) -> Values:
    scratch = np.empty(BLOCK)
    return {
        part.run.dtype: np.concatenate(
            [decoded(part, payload, block, scratch).copy() for block in part.run.blocks()]
        )
        for part in layout.segments
    }


def nearest_half(value: Fraction) -> float:
    """The bfloat16 next to a number that is no subnormal, by looking at all there are; ties to even."""
    magnitude = abs(value)
    above = bisect_left(HALVES, magnitude)
    below = max(above - 1, 0)
    up, down = Fraction(HALVES[above]) - magnitude, magnitude - Fraction(HALVES[below])
    pattern = above if up < down or (up == down and above % 2 == 0) else below
    return math.copysign(HALVES[pattern], value)


_NORMAL = st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-20)


@given(st.lists(st.tuples(_NORMAL, _NORMAL), min_size=1, max_size=40))
def test_a_bfloat16_delta_is_the_exact_difference_rounded_once(
    pairs: list[tuple[float, float]],
) -> None:
    base = {"F32": np.array([pair[0] for pair in pairs], np.float32)}
    update = {"F32": np.array([pair[1] for pair in pairs], np.float32)}
    found = said(*sent(BF16, base, update))["F32"]
    for (before, after), value in zip(pairs, found.tolist(), strict=True):
        assert value == nearest_half(Fraction(after - before))  # of binary64, as is the rule


@pytest.mark.parametrize("tail", [0, 2**-40, -(2**-40)])
def test_a_delta_beside_a_tie_is_not_rounded_twice(tail: float) -> None:
    delta = 1 + 2**-8 + tail  # by way of binary32 it would become the tie
    found = said(*sent(BF16, {"F64": np.zeros(2)}, {"F64": np.array([delta, -delta])}))["F64"]
    expected = 1 + 2**-7 if tail > 0 else 1.0
    assert found.tolist() == [expected, -expected]


def test_a_tie_is_rounded_to_the_even_neighbour() -> None:
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, -1 - 3 * 2**-8])
    found = said(*sent(BF16, {"F64": np.zeros(4)}, {"F64": ties}))["F64"]
    assert found.tolist() == [1.0, 1 + 2**-6, -1.0, -1 - 2**-6]


def test_large_statistics_and_small_weights_come_back_each_within_its_own_error() -> None:
    random = np.random.default_rng(7)
    parts: Values = {
        "norm.running_var": random.standard_normal(30) * 1e5,
        "norm.scalar": np.array(3.3e4),
        "norm.weight": random.standard_normal(30) * 1e-6,
        "output.weight": random.standard_normal((16, 30)) * 1e-3,
    }
    schema = Schema.of([TensorSpec(name, "F64", values.shape) for name, values in parts.items()])
    layout = UpdateLayout(schema, INT8)
    update = b"".join(parts[spec.name].tobytes() for spec in schema.tensors)
    payload = bytearray(layout.total_bytes)
    encode(layout, Change(bytes(len(update)), update), payload)
    check_update(layout, payload, Bounds())
    found = said(layout, payload)["F64"]
    assert found[:61].tolist() == np.frombuffer(update)[:61].astype(np.float32).tolist()
    weights = parts["output.weight"].ravel()
    error = np.abs(found[61:] - weights).max()
    assert 0 < error <= np.abs(weights).max() / 127 * (1 + 1e-6)


def test_a_plain_delta_is_the_exact_difference_rounded_once() -> None:
    values = [1 + 2**-24, 1 + 2**-24 + 2**-50, 1 + 3 * 2**-24, -1e-45, 3e38]
    layout = UpdateLayout(Schema.of([TensorSpec("t", "F64", (5,))]), INT8)
    payload = bytearray(layout.total_bytes)
    encode(layout, Change(bytes(40), np.array(values).tobytes()), payload)
    expected = [1.0, 1 + 2**-23, 1 + 2**-22, -(2.0**-149), float(np.float32(3e38))]
    assert said(layout, payload)["F64"].tolist() == expected


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 24), max_size=3).map(tuple)
        ),
        max_size=9,
    ),
    st.sampled_from(DELTAS),
    st.integers(0, 1 << 32),
)
def test_tensors_of_every_type_and_size_come_out_as_they_went_in_but_for_the_rounding(
    specs: list[tuple[str, tuple[int, ...]]], encoding: "pb.Encoding", seed: int
) -> None:
    schema = Schema.of(
        [TensorSpec("w", "F32", (0, 3))]
        + [TensorSpec(f"t{i}", dtype, shape) for i, (dtype, shape) in enumerate(specs)]
    )
    random = np.random.default_rng(seed)
    base, update = (
        b"".join(
            np.asarray(random.integers(0, 2, spec.shape)).astype(DTYPES[spec.dtype]).tobytes()
            if spec.dtype not in {"F32", "F64"}
            else np.asarray(random.standard_normal(spec.shape) * 10.0 ** random.integers(-6, 6))
            .astype(DTYPES[spec.dtype])
            .tobytes()
            for spec in schema.tensors
        )
        for _ in range(2)
    )
    layout = UpdateLayout(schema, encoding)
    out = bytearray(layout.total_bytes)
    encode(layout, Change(base, update), out)
    check_update(layout, out, Bounds())
    for part, found in zip(layout.segments, said(layout, out).values(), strict=True):
        before, after = part.run.values(base), part.run.values(update)
        if not part.is_delta:
            assert found.tobytes() == after.tobytes()
            continue
        delta = after.astype(np.float64) - before
        step = np.abs(delta) / 256
        if encoding == INT8:
            own = [spec for spec in schema.tensors if spec.dtype == part.run.dtype]
            is_plain = np.concatenate([np.full(math.prod(s.shape), len(s.shape) < 2) for s in own])
            largest = np.abs(delta, where=~is_plain, out=np.zeros(len(delta))).max()
            step = np.where(is_plain, np.abs(delta) * 2.0**-24, largest / 127)
        assert (np.abs(found - delta) <= step * (1 + 1e-6)).all()


@pytest.mark.parametrize("encoding", DELTAS)
def test_encoding_needs_the_memory_of_a_few_blocks_however_large_the_model(
    encoding: "pb.Encoding",
) -> None:
    count = 40 * BLOCK
    layout = UpdateLayout(
        Schema.of(
            [TensorSpec("w", "F32", (count // 80, 40)), TensorSpec("x", "F32", (count // 2,))]
        ),
        encoding,
    )
    base, update = np.zeros(count, np.float32), np.ones(count, np.float32)
    out = bytearray(layout.total_bytes)
    change = Change(base.data.cast("B"), update.data.cast("B"))
    tracemalloc.start()
    encode(layout, change, out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 8 * BLOCK


@given(
    st.sampled_from(["F32", "F64"]),
    st.integers(1, 700),
    st.integers(-60, 60),
    st.integers(0, 1 << 32),
)
def test_int8_deltas_are_the_nearest_multiples_of_the_scale_of_their_block(
    dtype: str, count: int, exponent: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    base = random.standard_normal(count).astype(DTYPES[dtype])
    step = random.standard_normal(count) * 2.0**exponent
    update = (base + step).astype(DTYPES[dtype])
    layout, payload = sent(INT8, {dtype: base}, {dtype: update})
    (part,) = layout.segments
    deltas = (update.astype(np.float64) - base.astype(np.float64)).tolist()
    quanta = part.quanta(payload).tolist()
    for begin, scale in zip(range(0, count, 256), part.scales(payload), strict=True):
        block = deltas[begin : begin + 256]
        largest = max(map(abs, block))
        assert float(scale) >= largest / 127
        assert float(scale) / 2 < largest / 127 or scale == 0
        assert math.frexp(float(scale))[0] == 0.5 or scale == 0
        for delta, quantum in zip(block, quanta[begin : begin + 256], strict=True):
            assert quantum == (round(delta / float(scale)) if scale else 0)
            assert abs(Fraction(delta) - Fraction(float(scale)) * quantum) <= Fraction(
                float(scale)
            ) * Fraction(500001, 1000000)


def test_deltas_err_by_as_much_as_these_encodings_do_and_no_more() -> None:
    """A thousandth of the update for bfloat16, and less than one in a hundred for int8."""
    random = np.random.default_rng(0)
    base = random.standard_normal(BLOCK + 77).astype(np.float32)
    update = base + (0.01 * random.standard_normal(BLOCK + 77)).astype(np.float32)
    true = update.astype(np.float64) - base
    for encoding, low, high in ((BF16, 0.001, 0.002), (INT8, 0.006, 0.012)):
        found = said(*sent(encoding, {"F32": base}, {"F32": update}))["F32"]
        error = np.sqrt(np.mean((found - true) ** 2) / np.mean(true**2))
        assert low < error < high


def test_the_smallest_deltas_there_are_make_no_scale_too_small_for_them() -> None:
    tiny = np.array([1e-45, -1e-45, 3e-45], np.float32)
    layout, payload = sent(INT8, {"F32": np.zeros(3, np.float32)}, {"F32": tiny})
    assert np.abs(layout.segments[0].quanta(payload).astype(int)).max() <= 127
    np.testing.assert_allclose(said(layout, payload)["F32"], tiny, atol=1e-45)


@pytest.mark.parametrize("encoding", DELTAS)
def test_an_update_that_is_its_base_is_said_exactly(encoding: "pb.Encoding") -> None:
    base = {"F32": np.full(300, 1e30, np.float32), "F64": np.arange(3.0)}
    found = said(*sent(encoding, base, base))
    assert all(not values.any() for values in found.values())


@pytest.mark.parametrize("encoding", DELTAS)
def test_what_is_no_float32_or_float64_keeps_every_bit(encoding: "pb.Encoding") -> None:
    base: Values = {
        "I64": np.array([1 << 60, -5]),
        "F32": np.zeros(5, np.float32),
        "I32": np.array([7], np.int32),
        "BF16": np.array([1, 2, 3], ml_dtypes.bfloat16),
        "F16": np.array([65504, -0.0], np.float16),
        "U8": np.array([255], np.uint8),
        "BOOL": np.array([True, False]),
    }
    update = {name: values[::-1].copy() for name, values in base.items()}
    layout, payload = sent(encoding, base, update)
    for part in layout.segments:
        if not part.is_delta:
            assert part.values(payload).tobytes() == update[part.run.dtype].tobytes()


@pytest.mark.parametrize("encoding", DELTAS)
@pytest.mark.parametrize("dtype", ["F32", "F64"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 255, 256, BLOCK - 1, BLOCK, BLOCK + 299])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_value_that_is_not_finite_does_not_travel(
    encoding: "pb.Encoding", dtype: str, value: float, position: int, dimensions: int
) -> None:
    more = (1,) * (dimensions - 1)
    schema = Schema.of(
        [TensorSpec("a", dtype, (BLOCK, *more)), TensorSpec("b", dtype, (300, *more))]
    )
    base = np.zeros(BLOCK + 300, DTYPES[dtype])
    update = base.copy()
    update[position] = value
    change = Change(base.tobytes(), update.tobytes())
    layout = UpdateLayout(schema, encoding)
    with pytest.raises(UpdateRefused, match=f"tensor {'ab'[position >= BLOCK]} has") as caught:
        encode(layout, change, bytearray(layout.total_bytes))
    assert caught.value.reason == pb.REASON_NON_FINITE


@pytest.mark.parametrize("encoding", DELTAS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_nan_of_any_bits_does_not_travel(encoding: "pb.Encoding", shape: tuple[int, ...]) -> None:
    layout = UpdateLayout(Schema.of([TensorSpec("w", "F32", shape)]), encoding)
    for bits in (0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000):
        update = np.array([bits], np.uint32).tobytes()
        with pytest.raises(UpdateRefused):
            encode(layout, Change(bytes(4), update), bytearray(layout.total_bytes))


@pytest.mark.parametrize("encoding", DELTAS)
@pytest.mark.parametrize("far", [1.7e308, 1e41])
@pytest.mark.parametrize("shape", [(2,), (1, 2)])
def test_a_change_that_the_encoding_cannot_say_does_not_travel(
    encoding: "pb.Encoding", far: float, shape: tuple[int, ...]
) -> None:
    layout = UpdateLayout(Schema.of([TensorSpec("w", "F64", shape)]), encoding)
    base, update = np.array([0.0, -far]), np.array([0.0, far])
    change = Change(base.tobytes(), update.tobytes())
    with pytest.raises(UpdateRefused, match="tensor w has a change") as caught:
        encode(layout, change, bytearray(layout.total_bytes))
    assert caught.value.reason == pb.REASON_NON_FINITE


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_value_that_is_not_finite_does_not_travel_as_it_is_either(dtype: str) -> None:
    layout = UpdateLayout(Schema.of([TensorSpec("w", dtype, (3,))]), INT8)
    update = np.array([0, math.nan, 0], DTYPES[dtype]).tobytes()
    with pytest.raises(UpdateRefused, match="tensor w has a value that is NaN"):
        encode(layout, Change(bytes(6), update), bytearray(layout.total_bytes))


def test_a_length_is_that_of_all_changes_together_with_what_is_added_to_them() -> None:
    base: Values = {
        "F64": np.ones(BLOCK + 1),
        "F32": np.zeros(3, np.float32),
        "F16": np.zeros(1, np.float16),
        "I64": np.array([9]),
    }
    update = {name: values.copy() for name, values in base.items()}
    update["F64"][-1] += 3
    update["F16"][0] = 12
    update["I64"][0] = 10**6
    residual = {"F32": np.array([0, 4, 0], np.float32)}
    change = Change(payload_of(base), payload_of(update), residual)
    assert length(UpdateLayout(schema_of(base), INT8), change) == 13.0


@pytest.mark.parametrize("encoding", DELTAS)
def test_a_factor_scales_every_change_and_leaves_whole_numbers_alone(
    encoding: "pb.Encoding",
) -> None:
    base: Values = {
        "F32": np.array([10, 20], np.float32),
        "BF16": np.array([4], ml_dtypes.bfloat16),
        "I64": np.array([1]),
    }
    update: Values = {
        "F32": np.array([14, 20], np.float32),
        "BF16": np.array([8], ml_dtypes.bfloat16),
        "I64": np.array([90]),
    }
    found = said(*sent(encoding, base, update, factor=0.25))
    np.testing.assert_allclose(found["F32"], [1.0, 0.0], rtol=1e-6)
    assert (found["BF16"].tolist(), found["I64"].tolist()) == ([5.0], [90])
