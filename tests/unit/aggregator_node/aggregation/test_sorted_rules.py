"""The trimmed mean and the bucketed median, held against NumPy and exact fractions."""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregator_node.aggregation.bucketed_median import bucket_slices
from aggregator_node.aggregation.exact_sum import BLOCK
from aggregator_node.aggregation.sorting import sort_columns
from cairn.errors import LimitExceeded
from cairn.model.schema import DTYPES
from cairn.model.validation import SIGNIFICANT_BITS
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.aggregation.rule_cases import (
    KINDS,
    cases,
    combined,
    random_updates,
    reading_deltas,
    released,
    schema_of,
)


def rounded(values: Sequence[Fraction], dtype: str) -> NDArray[Any]:
    """Once, ties to even: by Python's own `round` to the last place of a number of that size."""
    if dtype not in SIGNIFICANT_BITS:
        return np.array([round(value) for value in values]).astype(DTYPES[dtype])
    lowest = {"F16": -24, "BF16": -133, "F32": -149, "F64": -1074}[dtype]
    nearest = []
    for value in values:
        exponent = abs(value).numerator.bit_length() - value.denominator.bit_length()
        exponent -= abs(value) < Fraction(2) ** exponent
        step = Fraction(2) ** max(exponent - SIGNIFICANT_BITS[dtype] + 1, lowest)
        nearest.append(float(round(value / step) * step))
    return np.array(nearest).astype(DTYPES[dtype])


def columns(updates: Sequence[NDArray[Any]]) -> list[list[Fraction]]:
    as_numbers = [
        update.astype(np.float64 if update.dtype.kind in "fV" else object).tolist()
        for update in updates
    ]
    return [[Fraction(value) for value in column] for column in zip(*as_numbers, strict=True)]


def mean(values: Sequence[Fraction]) -> Fraction:
    return sum(values, Fraction(0)) / len(values)


def median(values: Sequence[Fraction]) -> Fraction:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else mean(ordered[half - 1 : half + 1])


@pytest.mark.parametrize("count", range(1, 9))
def test_the_network_sorts_every_column_of_zeros_and_ones_and_so_any_column(count: int) -> None:
    """Knuth's 0-1 principle."""
    inputs = np.array(list(product((0, 1), repeat=count)), np.int8).T
    ordered = sort_columns(np.concatenate([inputs, inputs[:1]]))
    assert np.array_equal(np.array(ordered), np.sort(inputs, axis=0))


@pytest.mark.parametrize("count", [13, 16, 31, 100])
def test_the_network_sorts_many_rows(count: int) -> None:
    rows = np.random.default_rng(count).normal(0, 1, (count + 1, 50))
    expected = np.sort(rows[:-1], axis=0)
    assert np.array_equal(np.array(sort_columns(rows)), expected)


@pytest.mark.parametrize("dtype", KINDS)
@settings(max_examples=25, deadline=None)
@given(case=cases, trim=st.sampled_from([0, 0.1, 0.25, 0.34, 0.4]))
def test_a_trimmed_mean_is_that_of_the_values_between_rounded_once(
    dtype: str, case: tuple[int, int, int], trim: float
) -> None:
    updates = random_updates(dtype, *case)
    left_out = int(Fraction(str(trim)) * len(updates))
    kept = [sorted(column)[left_out : len(column) - left_out] for column in columns(updates)]
    result = combined(pb.RULE_TRIMMED_MEAN, updates, {"trim": trim})
    assert np.array_equal(result, rounded([mean(values) for values in kept], dtype))


def test_a_trimmed_mean_is_numpys_mean_of_the_sorted_values_between() -> None:
    updates = random_updates("F64", 12, 500, 1)
    result = combined(pb.RULE_TRIMMED_MEAN, updates, {"trim": 0.25})
    assert np.allclose(result, np.sort(updates, axis=0)[3:9].mean(axis=0), rtol=1e-14)


def test_elements_that_depend_on_one_another_take_a_trimmed_mean_apart() -> None:
    """What is not prevented: in a model made for it, one release tells every owner's value, in no order.

    Each element averages over three of five owners, but over other three from element to element. An element that is
    a secret and 64 times a helper is trimmed as its helper is, so the two tell the secret's mean over those three.
    Hidden units whose weights add up make such elements: the gradients behind them add up as well.
    """
    secrets, helpers = np.random.default_rng(2).normal(0, 1, 5), 400
    known = np.random.default_rng(3).normal(0, 1, (5, helpers))
    updates = [
        np.concatenate([row, secret + 64 * row]).astype(np.float32)
        for row, secret in zip(known, secrets, strict=True)
    ]
    result = combined(pb.RULE_TRIMMED_MEAN, updates, {"trim": 0.2}, floor=3).astype(np.float64)
    means = Counter(np.round(result[helpers:] - 64 * result[:helpers], 3).tolist())
    assert taken_apart([3 * value for value, times in means.items() if times > 4]) == pytest.approx(
        np.sort(secrets), abs=0.01
    )


def taken_apart(sums_of_three: Sequence[float]) -> list[float]:
    """The five numbers, in ascending order, of which these are the sums of each three; nearly equal ones are one."""
    sums = sorted(sums_of_three)
    distinct = [
        each for each, last in zip(sums, [-math.inf, *sums], strict=False) if each > last + 0.01
    ]
    assert len(distinct) == 10
    total = sum(distinct) / 6
    pairs = sorted(total - each for each in distinct)
    middle = total - pairs[0] - pairs[-1]
    least, most = pairs[1] - middle, pairs[-2] - middle
    return [least, pairs[0] - least, middle, pairs[-1] - most, most]


@pytest.mark.parametrize("dtype", KINDS)
@settings(max_examples=25, deadline=None)
@given(case=cases, bucket=st.integers(2, 6))
def test_a_bucketed_median_is_that_of_the_means_of_consecutive_updates(
    dtype: str, case: tuple[int, int, int], bucket: int
) -> None:
    updates = random_updates(dtype, *case)
    parts = np.array_split(np.arange(len(updates)), len(updates) // bucket)
    means = [
        rounded([mean([column[i] for i in part]) for column in columns(updates)], dtype)
        for part in parts
    ]
    result = combined(pb.RULE_BUCKETED_MEDIAN, updates, {"bucket": bucket})
    assert np.array_equal(result, rounded([median(column) for column in columns(means)], dtype))


def test_a_bucketed_median_is_numpys_median_of_means() -> None:
    updates = random_updates("F64", 12, 500, 2)
    means = np.array(updates).reshape(4, 3, -1).mean(axis=1)
    result = combined(pb.RULE_BUCKETED_MEDIAN, updates, {"bucket": 3})
    assert np.allclose(result, np.median(means, axis=0), rtol=1e-14)


@pytest.mark.parametrize(("owners", "bucket"), [(2, 2), (7, 2), (8, 3), (1024, 3), (9, 9)])
def test_every_bucket_has_as_many_owners_as_it_says_and_every_owner_is_in_one(
    owners: int, bucket: int
) -> None:
    members = [list(range(owners)[part]) for part in bucket_slices(owners, owners // bucket)]
    assert [owner for bucket_of in members for owner in bucket_of] == list(range(owners))
    assert min(map(len, members)) >= bucket
    assert max(map(len, members)) - min(map(len, members)) <= 1


@pytest.mark.parametrize("rule", [pb.RULE_TRIMMED_MEAN, pb.RULE_BUCKETED_MEDIAN])
def test_deltas_are_combined_rounded_to_bfloat16_and_added_to_the_base(rule: "pb.Rule") -> None:
    generator = np.random.default_rng(4)
    base = generator.normal(0, 1, 300).astype(np.float32)
    deltas = generator.normal(0, 1e-3, (10, 300)).astype(np.float32).astype(np.float64)
    if rule == pb.RULE_TRIMMED_MEAN:
        values = [mean(sorted(column)[3:7]) for column in columns(list(deltas))]
        combination = rounded(values, "BF16")
    else:
        means = [
            rounded([mean(column) for column in columns(list(deltas[i : i + 2]))], "BF16")
            for i in range(0, 10, 2)
        ]
        combination = rounded([median(column) for column in columns(means)], "BF16")
    payload = released(
        rule,
        schema_of("F32", 300),
        [reading_deltas(row) for row in deltas],
        base=base.tobytes(),
        are_deltas=True,
    )
    expected = (base + combination.astype(np.float64)).astype(np.float32)
    assert np.array_equal(np.frombuffer(payload, np.float32), expected)


@pytest.mark.parametrize("rule", [pb.RULE_TRIMMED_MEAN, pb.RULE_BUCKETED_MEDIAN])
def test_blocks_and_the_parts_of_them_that_many_updates_are_sorted_in_leave_no_gap(
    rule: "pb.Rule",
) -> None:
    count = BLOCK + 1500
    updates = random_updates("F32", 40, count, 7)
    result = combined(rule, updates)
    places = [0, 1023, 1024, 6553, 6554, BLOCK - 1, BLOCK, count - 1]
    few = [np.ascontiguousarray(update[places]) for update in updates]
    assert np.array_equal(result[places], combined(rule, few))
    assert np.isfinite(result).all()


def test_a_combination_beyond_the_range_is_not_released() -> None:
    base = np.full(3, 3e38, np.float32)
    reads = [reading_deltas(np.full(3, 3e38)) for _ in range(9)]
    with pytest.raises(LimitExceeded, match="aggregate of tensor t exceeds the range of F32"):
        released(
            pb.RULE_TRIMMED_MEAN,
            schema_of("F32", 3),
            reads,
            base=base.tobytes(),
            are_deltas=True,
        )
