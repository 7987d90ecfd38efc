"""Expansions keep every bit: held against exact fractions, and their size against its argument."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_node.aggregation.exact_sum import (
    BLOCK,
    LARGEST,
    Carry,
    ExactSums,
    Floats,
    exact_terms,
    normalise,
    two_sum,
)
from cairn.model.schema import DTYPES
from cairn.model.validation import SIGNIFICANT_BITS

finite = st.floats(-1e300, 1e300, allow_nan=False)


def exact(levels: Sequence[Floats], place: int) -> Fraction:
    return sum((Fraction(float(level[place])) for level in levels), Fraction(0))


def everything(sums: ExactSums, block: slice, place: int) -> Fraction:
    """Level 0 and all that is carried below it."""
    level, carry = sums.read(block)
    total = Fraction(float(level[place]))
    if carry is not None:
        places, levels = carry.read()
        total += sum(
            (exact(levels, i) for i in range(len(places)) if places[i] == place), Fraction(0)
        )
    return total


@given(a=finite, b=finite)
def test_a_sum_and_its_error_are_the_exact_sum(a: float, b: float) -> None:
    total, error = two_sum(np.array([a]), np.array([b]))
    assert float(total[0]) == a + b
    assert exact([total, error], 0) == Fraction(a) + Fraction(b)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
@given(data=st.data())
def test_terms_are_the_exact_product(dtype: str, data: st.DataObject) -> None:
    weight = data.draw(
        st.one_of(st.integers(1, 9), st.integers(1, 2**41), st.integers(0, 41).map(lambda k: 2**k))
    )
    value = data.draw(st.floats(-6e4, 6e4))
    values = np.array([value, 0, -value], DTYPES[dtype])
    terms = [
        term.copy() for term in exact_terms(values, SIGNIFICANT_BITS[dtype], weight, np.empty(3))
    ]
    for place in range(3):
        assert exact(terms, place) == Fraction(float(values[place])) * weight


@pytest.mark.parametrize(
    ("bits", "weight", "terms"),
    [
        (24, 2**29 - 1, 1),
        (24, 2**29 + 1, 2),
        (53, 2**41, 1),
        (53, 3, 2),
        (53, 3 * 2**26, 2),
        (53, 2**26 + 1, 4),
    ],
)
def test_a_product_that_fits_is_one_term_and_any_other_as_many_as_it_needs(
    bits: int, weight: int, terms: int
) -> None:
    assert len(list(exact_terms(np.array([1.0]), bits, weight, np.empty(1)))) == terms


@pytest.mark.parametrize("weight", [1, 3, 2**29 + 1, 2**41])
@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_every_term_of_a_zero_has_its_sign(dtype: str, weight: int) -> None:
    zeros = np.array([-0.0, 0.0], DTYPES[dtype])
    for term in exact_terms(zeros, SIGNIFICANT_BITS[dtype], weight, np.empty(2)):
        assert np.signbit(term).tolist() == [True, False]


@pytest.mark.parametrize("weight", [3, 2**31 - 1, 2**41 - 1])
def test_the_smallest_numbers_are_cut_without_loss(weight: int) -> None:
    values = np.array([5e-324, 2**52 * 5e-324 - 5e-324, -(2**27 + 1) * 5e-324])
    terms = [term.copy() for term in exact_terms(values, 53, weight, np.empty(3))]
    for place in range(3):
        assert exact(terms, place) == Fraction(float(values[place])) * weight


@given(st.lists(finite, min_size=1, max_size=8))
def test_normalised_levels_have_the_same_sum_and_do_not_overlap(numbers: list[float]) -> None:
    before = [np.array([number]) for number in numbers]
    after = normalise(before)
    assert exact(after, 0) == sum(map(Fraction, numbers))
    for upper, lower in pairwise(after):
        assert abs(float(lower[0])) <= float(np.spacing(np.abs(upper[0]))) / 2


def test_numbers_that_are_none_can_be_normalised() -> None:
    assert np.isnan(normalise([np.array([np.inf]), np.array([np.nan]), np.array([1.0])])[0][0])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_sums_of_any_spread_are_exact(data: st.DataObject) -> None:
    numbers = st.lists(st.floats(-LARGEST, LARGEST), min_size=3, max_size=3)
    updates = data.draw(st.lists(st.tuples(numbers, st.integers(1, 2**31 - 1)), min_size=1))
    sums, block = ExactSums(np.empty(3)), slice(0, 3)
    for i, (values, weight) in enumerate(updates):
        sums.add(block, np.array(values), 53, weight, first=i == 0)
    for place in range(3):
        expected = sum(Fraction(values[place]) * weight for values, weight in updates)
        assert everything(sums, block, place) == expected


@pytest.mark.parametrize("count", [3, BLOCK // 8, BLOCK])
def test_a_carry_keeps_few_places_and_many(count: int) -> None:
    generator, carry = np.random.default_rng(count), Carry()
    expected = np.zeros(BLOCK, object)
    for power in (0, -60, -30, -90):
        places = np.sort(generator.choice(BLOCK, count, replace=False))
        errors = np.ldexp(generator.random(count), power)
        carry.add(places, errors)
        expected[places] += [Fraction(float(error)) for error in errors]
    places, levels = carry.read()
    assert places.tolist() == np.flatnonzero(expected).tolist()
    assert [exact(levels, i) for i in range(len(places))] == expected[places].tolist()


def test_values_far_apart_need_no_more_levels_than_was_argued() -> None:
    # All an owner can do with F32 up to 1e9 and the largest weights: bits all the way down to 2**-149.
    generator = np.random.default_rng(1)
    exponents = generator.integers(-149, 29, (64, 200))
    updates = np.ldexp(generator.integers(1, 1 << 24, (64, 200)) / 2**23, exponents)
    updates = updates.astype(np.float32)
    for order in (np.sort(updates, axis=0), np.sort(updates, axis=0)[::-1], updates):
        sums, block = ExactSums(np.empty(200)), slice(0, 200)
        for i, values in enumerate(order):
            sums.add(block, values, 24, 2**31 - 1, first=i == 0)
        _, carry = sums.read(block)
        assert carry is not None
        assert 2 <= len(carry._levels) <= 5  # and level 0


@pytest.mark.parametrize("values", [[1e300, -1e300], [np.inf, 1.0], [np.nan, 1.0]])
def test_what_leaves_the_range_stays_out_of_it_in_every_order(values: list[float]) -> None:
    for order in (values, values[::-1]):
        sums, block = ExactSums(np.empty(1)), slice(0, 1)
        with np.errstate(all="ignore"):
            for i, value in enumerate([*order, 0.0]):
                sums.add(block, np.array([value]), 53, 3, first=i == 0)
        assert not np.isfinite(sums.read(block)[0][0])


def test_carried_values_are_overwritten_when_they_are_erased() -> None:
    sums, block = ExactSums(np.empty(1)), slice(0, 1)
    sums.add(block, np.array([2.0**60]), 53, 1, first=True)
    sums.add(block, np.array([1.0]), 53, 1, first=False)
    _, carry = sums.read(block)
    assert carry is not None
    levels = carry._levels
    assert [level.tolist() for level in levels] == [[1.0]]
    sums.erase()
    assert [level.tolist() for level in levels] == [[0.0]]
    assert sums.read(block)[1] is None
