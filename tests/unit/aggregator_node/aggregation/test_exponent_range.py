"""A spread promises that sums are exact: held against exact fractions, and never promised too early."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator_node.aggregation.exponent_range import ExponentRange, spread_of
from cairn.model.schema import DTYPES
from cairn.model.validation import SIGNIFICANT_BITS

FLOATS = ["F16", "BF16", "F32", "F64"]


def spread(values: list[float], dtype: str = "F32", bits: int | None = None) -> ExponentRange:
    array = np.array(values, DTYPES[dtype])
    return spread_of(array, bits or SIGNIFICANT_BITS[dtype], np.empty(len(values), np.uint64))


def patterns(dtype: str) -> st.SearchStrategy[int]:
    """All bits of a value of this type, with each exponent as likely as any other."""
    size = 8 * DTYPES[dtype].itemsize
    return st.integers(0, (1 << size) - 1)


@pytest.mark.parametrize("dtype", FLOATS)
@given(data=st.data())
def test_every_value_is_a_multiple_of_the_low_end_and_below_the_high_end(
    dtype: str, data: st.DataObject
) -> None:
    bits = data.draw(st.lists(patterns(dtype), min_size=1, max_size=6))
    values = np.array(bits, f"u{DTYPES[dtype].itemsize}").view(DTYPES[dtype])
    found = spread_of(values, SIGNIFICANT_BITS[dtype], np.empty(len(values), np.uint64))
    numbers = [float(value) for value in values]
    if not all(math.isfinite(number) for number in numbers):
        assert found.high == math.inf
        return
    for number in numbers:
        assert (Fraction(number) / Fraction(2) ** found.low).denominator == 1
        assert abs(number) <= found.high


@given(
    values=st.lists(st.floats(-1e9, 1e9, width=32), min_size=1, max_size=5),
    weights=st.lists(st.integers(1, 2**31 - 1), min_size=5, max_size=5),
)
def test_a_sum_that_is_said_to_be_exact_is(values: list[float], weights: list[int]) -> None:
    total, exact, all_of_it = 0.0, Fraction(0), ExponentRange(900, 0.0)
    for value, weight in zip(values, weights, strict=False):
        total += value * weight
        exact += Fraction(value) * weight
        all_of_it = all_of_it.plus(spread([value]).weighted(weight))
        if all_of_it.is_exact:
            assert Fraction(total) == exact


def test_the_last_bit_that_fits_is_exact_and_one_more_is_not() -> None:
    # 1 and 2**28 are 53 bits apart with the 24 of each: their last and first bits are 2**-23 and 2**28.
    assert spread([1.0, 2.0**28]).is_exact
    assert not spread([1.0, 2.0**30]).is_exact


def test_fewer_significant_bits_reach_farther() -> None:
    assert not spread([1.0, 2.0**40], "F64").is_exact
    assert spread([1.0, 2.0**40], "F64", bits=8).is_exact


def test_zeros_do_not_lower_the_low_end() -> None:
    assert spread([0.0, -0.0, 0.5]) == spread([0.5])


def test_only_zeros_are_exact_beside_anything_that_is() -> None:
    assert spread([0.0]).plus(spread([0.5])).is_exact
    assert spread([0.0, -0.0], "F64").is_exact


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_never_exact(dtype: str, value: float) -> None:
    assert not spread([1.0, value], dtype).is_exact


def test_a_bound_that_leaves_the_range_is_never_exact() -> None:
    assert not spread([2.0**1022], "F64").weighted(2**31 - 1).is_exact


def test_numbers_below_the_smallest_normal_one_have_its_last_bit() -> None:
    assert spread([2.0**-149]).low == -149
    assert spread([5e-324], "F64", bits=8).low == -1074
