"""An owner that pushes values to spoil the average: none of them ever reaches it."""

import math
import struct
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from cairn.model.schema import DTYPES, Schema, TensorSpec
from cairn.v1 import round_pb2 as pb
from tests.hostile.owners import (
    PRECONDITION,
    TURNS,
    an_aggregator,
    average_of,
    ends_without,
    hot,
    joined_round,
    others_than,
    refuses_update,
)
from tests.service.network import OWNERS, Network

FLOATS = ["F16", "BF16", "F32", "F64"]
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
PLACES = {"first": 0, "middle": 2, "last": 4}
BOUND = 10**9  # the aggregator's largest_value, unless its file says otherwise


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    yield from an_aggregator(tmp_path_factory)


@pytest.fixture
def attacker() -> str:
    return next(TURNS)


def schema_of(dtype: str) -> Schema:
    return Schema.of([TensorSpec("who", dtype, (len(OWNERS),))])


def spoilt(owner: str, dtype: str, place: int, value: float) -> bytes:
    """The owner's one-hot update with one element replaced."""
    values = np.frombuffer(hot(owner, dtype), DTYPES[dtype]).copy()
    values[place] = value
    return values.tobytes()


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_an_update_with_a_value_that_is_no_number_is_left_out_of_the_average(
    network: Network, attacker: str, dtype: str, place: str, value: str
) -> None:
    opened = joined_round(network, schema_of(dtype))
    with refuses_update(network, attacker, "NON_FINITE"):
        opened.push(attacker, spoilt(attacker, dtype, PLACES[place], NOT_FINITE[value]))
    ended = ends_without(opened, attacker, give_up=False)
    assert ended.exclusions == {attacker: "NOT_COUNTED"}


@pytest.mark.parametrize("pattern", [0x7F80, 0x7F81, 0x7FFF, 0xFF80, 0xFFC1])
def test_every_bit_pattern_of_a_bfloat16_that_is_no_number_is_refused(
    network: Network, attacker: str, pattern: int
) -> None:
    opened = joined_round(network, schema_of("BF16"))
    values = np.frombuffer(hot(attacker, "BF16"), np.uint16).copy()
    values[-1] = pattern
    assert pattern & 0x7F80 == 0x7F80  # an exponent of ones only
    with refuses_update(network, attacker, "NON_FINITE"):
        opened.push(attacker, values.tobytes())
    ends_without(opened, attacker, give_up=False)


@pytest.mark.parametrize("value", [1e30, -1e30, 1.1 * BOUND, -1.1 * BOUND])
@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64"])
def test_an_update_with_a_huge_value_is_left_out_of_the_average(
    network: Network, attacker: str, dtype: str, value: float
) -> None:
    opened = joined_round(network, schema_of(dtype))
    with refuses_update(network, attacker, "MAGNITUDE_REFUSED"):
        opened.push(attacker, spoilt(attacker, dtype, 4, value))
    ended = ends_without(opened, attacker, give_up=False)
    assert ended.exclusions == {attacker: "NOT_COUNTED"}


def test_finite_values_whose_norm_overflows_are_refused(network: Network, attacker: str) -> None:
    values = np.full(len(OWNERS), 1e20, np.float32)
    with np.errstate(over="ignore"):
        assert np.isinf(np.sum(values * values))
    opened = joined_round(network)
    with refuses_update(network, attacker, "MAGNITUDE_REFUSED"):
        opened.push(attacker, values.tobytes())
    ends_without(opened, attacker, give_up=False)


@pytest.mark.parametrize("value", [math.nextafter(BOUND, math.inf), 1e308, -1e308])
def test_the_bound_of_a_binary64_is_kept_to_the_last_bit(
    network: Network, attacker: str, value: float
) -> None:
    opened = joined_round(network, schema_of("F64"))
    with refuses_update(network, attacker, "MAGNITUDE_REFUSED"):
        opened.push(attacker, spoilt(attacker, "F64", 0, value))
    ends_without(opened, attacker, give_up=False)


@pytest.mark.parametrize("sign", [1, -1])
def test_one_attacker_shifts_the_average_by_no_more_than_its_share_of_the_bound(
    network: Network, sign: int
) -> None:
    schema = schema_of("F64")
    opened = joined_round(network, schema, weighting=pb.WEIGHTING_EXAMPLES, examples=(1, 1000))
    weights = {"alice": 210, "bob": 100, "carol": 100, "dave": 10, "erin": 1}  # hers is capped
    worst = struct.pack("<5d", *[sign * float(BOUND)] * 5)
    opened.push("alice", worst, examples=1000)
    for owner in others_than("alice"):
        opened.push(owner, hot(owner, "F64"), examples=weights[owner])
    released = struct.unpack("<5d", opened.ends().payload)
    total = sum(weights.values())
    share = Fraction(BOUND * weights["alice"], total)
    for name, value in zip(OWNERS, released, strict=True):
        honest = Fraction(weights[name] * (name != "alice"), total)
        assert abs(Fraction(value) - honest) <= share * (1 + Fraction(1, 2**52))
        assert Fraction(value) == pytest.approx(float(honest + sign * share), rel=1e-15)


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)])
def test_an_integer_beyond_the_bound_is_refused(
    network: Network, attacker: str, value: int
) -> None:
    opened = joined_round(network, schema_of("I64"), cohort=OWNERS)
    values = np.zeros(len(OWNERS), np.int64)
    values[2] = value
    with refuses_update(network, attacker, "MAGNITUDE_REFUSED"):
        opened.push(attacker, values.tobytes())
    same = np.full(len(OWNERS), 7, np.int64).tobytes()
    for owner in others_than(attacker):
        opened.push(owner, same)
    assert opened.ends().payload == same


@pytest.mark.parametrize("byte", [2, 255])
def test_a_bool_that_is_neither_0_nor_1_is_refused(
    network: Network, attacker: str, byte: int
) -> None:
    opened = joined_round(network, schema_of("BOOL"))
    with refuses_update(network, attacker, "CORRUPT_UPDATE"):
        opened.push(attacker, bytes([0, 1, 0, 1, byte]))
    opened.decline(attacker, pb.REASON_STOPPING)
    same = bytes([0, 1, 0, 1, 1])
    for owner in others_than(attacker):
        opened.push(owner, same)
    assert opened.ends().payload == same


EXAMPLES = pb.WEIGHTING_EXAMPLES


# A weight is an unsigned number on the wire: -1 arrives as 2**64 - 1, and NaN is no number at all.
@pytest.mark.parametrize("examples", [0, 2**31, 2**63, 10**18, 2**64 - 1])
def test_an_impossible_weight_is_refused(network: Network, attacker: str, examples: int) -> None:
    opened = joined_round(network, weighting=pb.WEIGHTING_EXAMPLES, examples=(10, 1000))
    with refuses_update(network, attacker, "EXAMPLES_REFUSED"):
        opened.push(attacker, hot(attacker), examples=examples)
    honest = others_than(attacker)
    for owner in honest:
        opened.push(owner, hot(owner), examples=10)
    ended = opened.ends()
    assert ended.exclusions == {attacker: "NOT_COUNTED"}
    assert ended.payload == average_of(honest)


@pytest.mark.parametrize(("claimed", "weight"), [(1, 10), (1001, 1000), (2**31 - 1, 1000)])
def test_a_weight_beyond_the_jobs_bounds_counts_as_the_bound(
    network: Network, attacker: str, claimed: int, weight: int
) -> None:
    opened = joined_round(network, schema_of("F64"), weighting=EXAMPLES, examples=(10, 1000))
    opened.push(attacker, hot(attacker, "F64"), examples=claimed)
    for owner in others_than(attacker):
        opened.push(owner, hot(owner, "F64"), examples=300)
    total = weight + 300 * (len(OWNERS) - 1)
    expected = [Fraction(weight if name == attacker else 300, total) for name in OWNERS]
    assert struct.unpack("<5d", opened.ends().payload) == tuple(map(float, expected))


METRICS: dict[str, tuple[dict[str, float], str]] = {
    "nan": ({"loss": math.nan}, "NON_FINITE"),
    "inf": ({"loss": math.inf}, "NON_FINITE"),
    "-inf": ({"loss": 0.5, "z": -math.inf}, "NON_FINITE"),
    "too many": ({f"m{n}": 1.0 for n in range(65)}, "MALFORMED"),
    "a long name": ({"x" * 65: 1.0}, "MALFORMED"),
    "a name of long letters": ({"é" * 33: 1.0}, "MALFORMED"),
    "no name": ({"": 1.0}, "MALFORMED"),
}


@pytest.mark.parametrize("what", METRICS)
def test_metrics_that_are_none_are_refused_and_leave_the_others_alone(
    network: Network, attacker: str, what: str
) -> None:
    metrics, reason = METRICS[what]
    opened = joined_round(network)
    with refuses_update(network, attacker, reason):
        opened.push(attacker, hot(attacker), metrics=metrics)
    honest = others_than(attacker)
    for owner in honest:
        opened.push(owner, hot(owner), metrics={"loss": 0.25})
    if reason == "MALFORMED":  # it could mend that
        opened.decline(attacker, pb.REASON_STOPPING)
    ended = opened.ends()
    assert dict(ended.statement.metrics) == {"loss": 0.25}
    assert ended.payload == average_of(honest)


def test_an_owner_that_was_refused_for_its_values_cannot_mend_them(
    network: Network, attacker: str
) -> None:
    opened = joined_round(network)
    with refuses_update(network, attacker, "NON_FINITE"):
        opened.push(attacker, spoilt(attacker, "F32", 0, math.nan))
    with refuses_update(network, attacker, "OUT_OF_TURN", PRECONDITION):
        opened.push(attacker, hot(attacker))
    ends_without(opened, attacker, give_up=False)
