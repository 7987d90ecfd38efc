"""Where the bytes of an update lie, what they say, and which are refused, against plain NumPy."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cairn.errors import UpdateRefused
from cairn.model.schema import DTYPES, Schema, TensorSpec
from cairn.model.segments import SCALE_BLOCK
from cairn.model.update_encoding import UpdateLayout, check_update, decoded
from cairn.model.validation import BLOCK, Bounds
from cairn.protocol.words import ENCODINGS, word_of
from cairn.v1 import round_pb2 as pb

WHOLE, BF16, INT8 = ENCODINGS.values()
DELTAS = [BF16, INT8]
BOUNDS = Bounds(value=100.0, integer=1000)


def padded(*pieces: bytes) -> bytes:
    """Each piece from a multiple of 8 on."""
    payload = b""
    for piece in pieces:
        payload += bytes(-len(payload) % 8) + piece
    return payload


def schema_of(**counts: int) -> Schema:
    """A tensor of each type, of two dimensions, called as it is."""
    return Schema.of([TensorSpec(dtype, dtype, (1, count)) for dtype, count in counts.items()])


def all_decoded(layout: UpdateLayout, payload: bytes | bytearray) -> dict[str, NDArray[Any]]:
    scratch = np.empty(BLOCK)
    return {
        part.run.dtype: np.concatenate(
            [decoded(part, payload, block, scratch).copy() for block in part.run.blocks()]
        )
        for part in layout.segments
    }


def reason_for(layout: UpdateLayout, payload: bytes, bounds: Bounds = BOUNDS) -> tuple[str, str]:
    with pytest.raises(UpdateRefused) as caught:
        check_update(layout, payload, bounds)
    return pb.Reason.Name(caught.value.reason).removeprefix("REASON_"), str(caught.value)


MIXED = schema_of(I64=3, F64=257, F32=2, BF16=3, F16=1, BOOL=5)
I64S = np.array([1, -2, 3])
HALVES = np.array([0.5, -2.0, 3.0], ml_dtypes.bfloat16)
F16S = np.array([0.25], np.float16)
BOOLS = np.array([1, 0, 1, 1, 0], np.uint8)


def test_a_whole_update_is_the_models_payload_and_has_the_digest_of_its_file() -> None:
    layout = UpdateLayout(MIXED, WHOLE)
    payload = bytes(range(256)) * 9
    payload = payload[: MIXED.total_bytes]
    assert layout.total_bytes == MIXED.total_bytes
    assert layout.digest(payload) == blake3(MIXED.header() + payload).digest()
    assert list(layout.gaps()) == []
    assert not any(part.is_delta for part in layout.segments)


def test_bfloat16_deltas_lie_where_the_layout_says_between_the_values_of_other_types() -> None:
    f64 = (np.arange(257) / 8).astype(ml_dtypes.bfloat16)
    f32 = np.array([1.5, -0.25], ml_dtypes.bfloat16)
    pieces: list[NDArray[Any]] = [I64S, f64, f32, HALVES, F16S, BOOLS]
    payload = padded(*(piece.tobytes() for piece in pieces))
    layout = UpdateLayout(MIXED, BF16)
    assert layout.total_bytes == len(payload)
    check_update(layout, payload, BOUNDS)
    for found, expected in zip(all_decoded(layout, payload).values(), pieces, strict=True):
        np.testing.assert_array_equal(found.astype(np.float64), expected.astype(np.float64))


def test_int8_deltas_lie_after_the_scales_of_every_256() -> None:
    scales = np.array([0.5, 0.1], np.float32)
    f64 = np.arange(257).astype(np.int64) % 255 - 127
    pieces = (
        I64S.tobytes(),
        scales.tobytes() + f64.astype(np.int8).tobytes(),
        np.array([0.25], np.float32).tobytes() + np.array([127, -3], np.int8).tobytes(),
        HALVES.tobytes(),
        F16S.tobytes(),
        BOOLS.tobytes(),
    )
    layout = UpdateLayout(MIXED, INT8)
    assert layout.total_bytes == len(padded(*pieces))
    check_update(layout, padded(*pieces), BOUNDS)
    found = all_decoded(layout, padded(*pieces))
    exact = [Fraction(float(scales[i // 256])) * int(q) for i, q in enumerate(f64)]
    assert [Fraction(value) for value in found["F64"]] == exact
    assert found["F32"].tolist() == [127 / 4, -3 / 4]
    assert found["BF16"].tolist() == HALVES.tolist()
    assert found["I64"].tolist() == I64S.tolist()


MANY_SHAPES = Schema.of(
    TensorSpec(name, "F32", shape)
    for name, shape in {
        "a.bias": (3,),
        "b.weight": (60, 3),
        "b.without": (0,),
        "b.yet": (40, 3),
        "c.scalar": (),
        "d.empty": (0, 4),
        "e.bias": (2,),
        "f.weight": (1, 1, 5),
        "g.bias": (4,),
    }.items()
)  # 315 elements; plain are 0 to 2, 303 to 305 and 311 to 314
PLAIN = np.array([1e5, -2.5, 1e-6, 7, 8, 9, 0.1, 0.2, -0.3, 99], np.float32)


def payload_of_many_shapes() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int8]]:
    """Scales, plain deltas and quanta that an owner could write."""
    quanta = (np.arange(315) % 255 - 127).astype(np.int8)
    quanta[np.r_[:3, 303:306, 311:315]] = 0
    return np.array([0.5, 0.1], np.float32), PLAIN.copy(), quanta


def test_deltas_of_tensors_of_fewer_than_two_dimensions_lie_plainly_before_the_quanta() -> None:
    scales, plain, quanta = payload_of_many_shapes()
    layout = UpdateLayout(MANY_SHAPES, INT8)
    payload = b"".join(piece.tobytes() for piece in (scales, plain, quanta))
    assert layout.total_bytes == len(payload) == 2 * 4 + 10 * 4 + 315
    check_update(layout, payload, Bounds())
    found = [Fraction(float(value)) for value in all_decoded(layout, payload)["F32"]]
    exact = [Fraction(float(scales[i // 256])) * int(q) for i, q in enumerate(quanta)]
    told = [Fraction(float(value)) for value in plain]
    assert found[:3] + found[303:306] + found[311:] == told
    assert found[3:303] + found[306:311] == exact[3:303] + exact[306:311]


@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_a_model_of_no_tensor_of_two_dimensions_has_no_quantum_but_zeros(
    dtype: str, shape: tuple[int, ...]
) -> None:
    layout, count = UpdateLayout(Schema.of([TensorSpec("t", dtype, shape)]), INT8), math.prod(shape)
    plain = np.array([1e-30, 2e30], np.float32)[:count]
    payload = bytes(4) + plain.tobytes() + bytes(count)
    found = all_decoded(layout, payload)[dtype]
    assert found.tolist() == plain.astype(np.float64).tolist()
    assert layout.total_bytes == len(payload)


@pytest.mark.parametrize("edge", [BLOCK - 1, BLOCK, BLOCK + 1])
def test_plain_deltas_that_lie_across_the_edge_of_a_block_are_read_in_their_places(
    edge: int,
) -> None:
    shapes = {"a": (1, edge), "b": (BLOCK + 3,), "c": (1, 2), "d": (BLOCK,)}
    layout = UpdateLayout(Schema.of(TensorSpec(k, "F32", v) for k, v in shapes.items()), INT8)
    count = edge + BLOCK + 3 + 2 + BLOCK
    is_plain = np.ones(count, bool)
    is_plain[:edge] = is_plain[edge + BLOCK + 3 :][:2] = False
    values = np.arange(1, count + 1) % 120
    scales = np.ones(-(-count // 256), np.float32)
    quanta = np.where(is_plain, 0, values).astype(np.int8)
    payload = b"".join(
        piece.tobytes() for piece in (scales, values[is_plain].astype(np.float32), quanta)
    )
    check_update(layout, payload, Bounds())
    np.testing.assert_array_equal(all_decoded(layout, payload)["F32"], values)


@pytest.mark.parametrize(
    ("number", "name"),
    [(0, "a.bias"), (2, "a.bias"), (3, "c.scalar"), (4, "e.bias"), (6, "g.bias"), (9, "g.bias")],
)
@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        (math.nan, "NON_FINITE", "has a delta that is NaN or infinite"),
        (-math.inf, "NON_FINITE", "has a delta that is NaN or infinite"),
        (200.00002, "MAGNITUDE_REFUSED", "has a delta beyond the largest that is allowed"),
        (-200.00002, "MAGNITUDE_REFUSED", "has a delta beyond the largest that is allowed"),
    ],
)
def test_a_plain_delta_that_must_not_be_used_is_refused_by_name(
    number: int, name: str, value: float, reason: str, words: str
) -> None:
    scales, plain, quanta = payload_of_many_shapes()
    plain[0] = 200  # twice the bound
    payload = b"".join(piece.tobytes() for piece in (scales, plain, quanta))
    check_update(UpdateLayout(MANY_SHAPES, INT8), payload, BOUNDS)
    plain[number] = value
    payload = b"".join(piece.tobytes() for piece in (scales, plain, quanta))
    assert reason_for(UpdateLayout(MANY_SHAPES, INT8), payload) == (
        reason,
        f"tensor {name} {words}",
    )


def test_a_plain_delta_is_finite_whatever_the_bound() -> None:
    layout, bounds = UpdateLayout(Schema.of([TensorSpec("t", "F32", (2,))]), INT8), Bounds(math.inf)
    largest = np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max], np.float32)
    check_update(layout, bytes(4) + largest.tobytes() + bytes(2), bounds)
    for bits in (
        0x7F800000,
        0xFF800000,
        0x7F800001,
        0x7FC00000,
    ):  # two infinities, two kinds of NaN
        plain = np.array([0, bits], np.uint32).tobytes()
        assert reason_for(layout, bytes(4) + plain + bytes(2), bounds)[0] == "NON_FINITE"


def test_a_plain_delta_beyond_the_first_block_is_refused_by_name() -> None:
    shapes = {"a": (BLOCK - 1,), "b": (1, 1), "c": (2,), "d": (2,)}
    layout = UpdateLayout(Schema.of(TensorSpec(k, "F64", v) for k, v in shapes.items()), INT8)
    payload = bytearray(layout.total_bytes)
    layout.segments[0].plain_deltas(payload)[BLOCK + 1] = math.nan
    assert reason_for(layout, bytes(payload)) == (
        "NON_FINITE",
        "tensor d has a delta that is NaN or infinite",
    )


@pytest.mark.parametrize("quantum", [1, -1, 127, -127])
@pytest.mark.parametrize(
    ("element", "name"),
    [
        (0, "a.bias"),
        (2, "a.bias"),
        (303, "c.scalar"),
        (305, "e.bias"),
        (311, "g.bias"),
        (314, "g.bias"),
    ],
)
def test_a_quantum_beside_a_plain_delta_is_refused_by_name(
    element: int, name: str, quantum: int
) -> None:
    scales, plain, quanta = payload_of_many_shapes()
    quanta[element] = quantum
    payload = b"".join(piece.tobytes() for piece in (scales, plain, quanta))
    assert reason_for(UpdateLayout(MANY_SHAPES, INT8), payload, Bounds()) == (
        "CORRUPT_UPDATE",
        f"tensor {name} has deltas beside its plain ones",
    )


@pytest.mark.parametrize("element", [0, BLOCK - 1, BLOCK, 2 * BLOCK])
def test_a_quantum_beside_a_plain_delta_is_refused_in_every_block(element: int) -> None:
    layout = UpdateLayout(Schema.of([TensorSpec("t", "F64", (2 * BLOCK + 1,))]), INT8)
    payload = bytearray(layout.total_bytes)
    payload[layout.total_bytes - (2 * BLOCK + 1) + element] = 1
    assert reason_for(layout, bytes(payload))[0] == "CORRUPT_UPDATE"


def test_a_scale_is_refused_by_the_name_of_a_tensor_that_has_it() -> None:
    scales, plain, quanta = payload_of_many_shapes()
    plain[:] = 0
    scales[0] = np.nan
    payload = b"".join(piece.tobytes() for piece in (scales, plain, quanta))
    _, words = reason_for(UpdateLayout(MANY_SHAPES, INT8), payload)
    assert words == "tensor b.weight has a delta that is NaN or infinite"


@given(
    q=st.integers(-127, 127),
    scale=st.floats(0, 2.0**120, width=32),
    count=st.integers(1, 3 * SCALE_BLOCK),
)
def test_a_quantum_times_its_scale_is_exact(q: int, scale: float, count: int) -> None:
    layout = UpdateLayout(schema_of(F32=count), INT8)
    scales = np.full(-(-count // 256), scale, np.float32)
    payload = scales.tobytes() + np.full(count, q, np.int8).tobytes()
    found = all_decoded(layout, payload)["F32"]
    assert {Fraction(float(value)) for value in found} == {Fraction(scale) * q}


def test_what_is_no_delta_is_read_in_place() -> None:
    layout = UpdateLayout(MIXED, INT8)
    payload = bytearray(layout.total_bytes)
    part = layout.segments[0]
    values = decoded(part, payload, slice(0, 3), np.empty(BLOCK))
    payload[part.begin] = 7
    assert values[0] == 7


@pytest.mark.parametrize("encoding", DELTAS)
def test_deltas_beyond_one_block_are_read_block_by_block(encoding: "pb.Encoding") -> None:
    count = BLOCK + 300
    layout = UpdateLayout(schema_of(F32=count), encoding)
    quanta = (np.arange(count) % 251 - 125).astype(np.int8)
    scales = (np.arange(-(-count // 256)) + 1).astype(np.float32)
    if encoding == INT8:
        payload = scales.tobytes() + quanta.tobytes()
        expected = np.repeat(scales.astype(np.float64), 256)[:count] * quanta
    else:
        payload = quanta.astype(ml_dtypes.bfloat16).tobytes()
        expected = quanta.astype(np.float64)
    np.testing.assert_array_equal(all_decoded(layout, payload)["F32"], expected)


_SPECS = st.lists(
    st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 40), max_size=3)),
    min_size=1,
    max_size=12,
)


@given(_SPECS, st.sampled_from(DELTAS))
def test_every_layout_is_aligned_without_overlap_and_takes_zeros(
    specs: Sequence[tuple[str, list[int]]], encoding: "pb.Encoding"
) -> None:
    schema = Schema.of(
        TensorSpec(f"t{i}", dtype, tuple(shape)) for i, (dtype, shape) in enumerate(specs)
    )
    layout, end = UpdateLayout(schema, encoding), 0
    for part in layout.segments:
        assert part.begin % 8 == 0
        assert 0 <= part.begin - end < 8
        end = part.end
        wide = {BF16: 2, INT8: 1}[encoding] if part.is_delta else DTYPES[part.run.dtype].itemsize
        beside = 0
        if part.is_delta and encoding == INT8:
            few = [s for dtype, s in specs if dtype == part.run.dtype and len(s) < 2]
            beside = 4 * math.ceil(part.run.count / 256) + 4 * sum(map(math.prod, few))
        assert part.end - part.begin == part.run.count * wide + beside
        assert part.is_delta == (part.run.dtype in {"F32", "F64"})
    assert layout.total_bytes == end
    check_update(layout, bytes(end), BOUNDS)


def test_no_two_encodings_and_no_two_models_share_a_digest() -> None:
    schemas = [schema_of(F32=0), schema_of(F64=0)]
    digests = {
        UpdateLayout(schema, e).digest(b"") for schema in schemas for e in ENCODINGS.values()
    }
    assert len(digests) == 6
    header = b"int8_deltas\n" + schemas[0].header()
    assert UpdateLayout(schemas[0], INT8).digest(b"") == blake3(header).digest()


def test_a_digest_is_that_of_the_words_the_header_and_the_payload() -> None:
    layout = UpdateLayout(schema_of(F32=3), BF16)
    header = b"bf16_deltas\n" + layout.schema.header()
    assert layout.digest(b"\1\2" * 3) == blake3(header + b"\1\2" * 3).digest()


def test_every_encoding_of_the_contract_has_a_word() -> None:
    assert {0, *ENCODINGS.values()} == set(pb.Encoding.values())
    assert all(word_of(pb.Encoding, encoding) == word for word, encoding in ENCODINGS.items())


@pytest.mark.parametrize("encoding", ENCODINGS.values())
@pytest.mark.parametrize("change", [-1, 1])
def test_an_update_of_another_length_is_refused(encoding: "pb.Encoding", change: int) -> None:
    layout = UpdateLayout(MIXED, encoding)
    assert reason_for(layout, bytes(layout.total_bytes + change))[0] == "CORRUPT_UPDATE"


@pytest.mark.parametrize("encoding", DELTAS)
def test_no_byte_between_the_runs_can_carry_anything(encoding: "pb.Encoding") -> None:
    layout = UpdateLayout(MIXED, encoding)
    gaps = list(layout.gaps())
    assert gaps
    for position in (position for gap in gaps for position in range(gap.start, gap.stop)):
        payload = bytearray(layout.total_bytes)
        payload[position] = 1
        assert reason_for(layout, bytes(payload))[0] == "CORRUPT_UPDATE"


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 2, BLOCK, BLOCK + 2])
def test_a_bfloat16_delta_that_is_not_finite_is_refused_by_name(
    value: float, position: int
) -> None:
    schema = Schema.of([TensorSpec("a", "F32", (2,)), TensorSpec("b", "F32", (BLOCK + 1,))])
    payload = np.zeros(BLOCK + 3, ml_dtypes.bfloat16)
    payload[position] = value
    name = "a" if position < 2 else "b"
    assert reason_for(UpdateLayout(schema, BF16), payload.tobytes()) == (
        "NON_FINITE",
        f"tensor {name} has a delta that is NaN or infinite",
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("limit", [100.0, 99.9, 1e-3, 1e9, 1e38])
def test_a_bfloat16_delta_is_refused_from_the_first_beyond_twice_the_bound_on(
    limit: float, sign: int
) -> None:
    layout, bounds = UpdateLayout(schema_of(F32=1), BF16), Bounds(value=limit)
    every = np.arange(0x7F80, dtype=np.uint16).view(ml_dtypes.bfloat16)
    within = every[every.astype(np.float64) <= 2 * limit]
    check_update(layout, (sign * within[-1:]).tobytes(), bounds)
    beyond = every[len(within) : len(within) + 1]
    reason, _ = reason_for(layout, (sign * beyond).astype(ml_dtypes.bfloat16).tobytes(), bounds)
    assert reason == "MAGNITUDE_REFUSED"


def test_a_bound_beyond_all_of_bfloat16_lets_every_finite_delta_pass() -> None:
    every = np.arange(0x7F80, dtype=np.uint16)
    layout = UpdateLayout(schema_of(F32=2 * len(every)), BF16)
    payload = np.concatenate([every, every | 0x8000]).tobytes()
    check_update(layout, payload, Bounds(value=math.inf))


@pytest.mark.parametrize(
    ("scale", "reason", "words"),
    [
        (math.nan, "NON_FINITE", "tensor b has a delta that is NaN or infinite"),
        (math.inf, "NON_FINITE", "tensor b has a delta that is NaN or infinite"),
        (-math.inf, "CORRUPT_UPDATE", "a scale of tensor b is below zero"),
        (-1e-45, "CORRUPT_UPDATE", "a scale of tensor b is below zero"),
        (-0.0, "CORRUPT_UPDATE", "a scale of tensor b is below zero"),
        (
            200 / 127 * 1.000001,
            "MAGNITUDE_REFUSED",
            "tensor b has a delta beyond the largest that is allowed",
        ),
    ],
)
def test_a_scale_that_no_owner_writes_is_refused_by_name(
    scale: float, reason: str, words: str
) -> None:
    schema = Schema.of([TensorSpec("a", "F32", (16, 16)), TensorSpec("b", "F32", (16, 16))])
    good = np.array([0.0, 200 / 127 * 0.999999], np.float32)
    check_update(UpdateLayout(schema, INT8), good.tobytes() + bytes(512), BOUNDS)
    scales = np.array([1.0, scale], np.float32)
    assert reason_for(UpdateLayout(schema, INT8), scales.tobytes() + bytes(512)) == (reason, words)


@pytest.mark.parametrize("position", [0, 255, BLOCK, BLOCK + 2])
def test_a_quantum_of_minus_128_is_refused(position: int) -> None:
    layout = UpdateLayout(schema_of(F64=BLOCK + 3), INT8)
    payload = bytearray(layout.total_bytes)
    begin = layout.total_bytes - (BLOCK + 3)
    payload[begin + position] = 0x81  # -127
    check_update(layout, payload, BOUNDS)
    payload[begin + position] = 0x80
    assert reason_for(layout, bytes(payload)) == (
        "CORRUPT_UPDATE",
        "tensor F64 has a delta of -128 scales",
    )


@pytest.mark.parametrize("encoding", ENCODINGS.values())
def test_values_that_travel_as_they_are_keep_to_the_bounds_of_values(
    encoding: "pb.Encoding",
) -> None:
    layout = UpdateLayout(MIXED, encoding)
    payload = bytearray(layout.total_bytes)
    by_type = {part.run.dtype: part for part in layout.segments}
    by_type["I64"].values(payload)[2] = 1001
    assert reason_for(layout, bytes(payload))[0] == "MAGNITUDE_REFUSED"
    by_type["I64"].values(payload)[2] = 1000
    by_type["F16"].values(payload)[0] = math.nan
    reason, words = reason_for(layout, bytes(payload))
    assert (reason, words) == ("NON_FINITE", "tensor F16 has a value that is NaN or infinite")
    by_type["F16"].values(payload)[0] = 1
    by_type["BOOL"].values(payload)[4] = 2
    assert reason_for(layout, bytes(payload))[0] == "CORRUPT_UPDATE"
