"""What becomes of updates: the numbers of a rule, and over how many owners each element is an average at least."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from statistics import mean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.errors import InvalidMessage
from cairn.protocol.aggregation import (
    NUMBERS,
    OPTIMIZER_NUMBERS,
    Aggregation,
    aggregation_from_pb,
    aggregation_to_pb,
    bucket_count,
    check_aggregation,
    numbers_of,
    trimmed,
)
from cairn.v1 import round_pb2 as pb

FLOOR = 3
EQUAL, EXAMPLES, WHOLE = pb.WEIGHTING_EQUAL, pb.WEIGHTING_EXAMPLES, pb.ENCODING_WHOLE
SGD = Aggregation(optimizer=pb.OPTIMIZER_SGD, optimizer_numbers={"lr": 0.1, "momentum": 0.0})
GRADIENTS = replace(SGD, content=pb.CONTENT_GRADIENTS)


def by(rule: "pb.Rule", **numbers: float) -> Aggregation:
    return Aggregation(rule=rule, rule_numbers=numbers)


PRIVATE = by(pb.RULE_PRIVATE_MEAN, norm=1.0, noise=1.0, epsilon=1.0, delta=1e-5)


def test_every_rule_and_optimizer_of_the_contract_has_its_numbers() -> None:
    assert set(NUMBERS) == {value for value in pb.Rule.values() if value}
    assert set(OPTIMIZER_NUMBERS) == {value for value in pb.Optimizer.values() if value}


@pytest.mark.parametrize(
    ("aggregation", "contributors", "averaged"),
    [
        (by(pb.RULE_MEAN), 7, 7),
        (by(pb.RULE_SUM), 7, 7),
        (by(pb.RULE_NORM_BOUNDED_MEAN, norm=1.0), 7, 7),
        (by(pb.RULE_TRIMMED_MEAN, trim=0.2), 7, 5),
        (by(pb.RULE_TRIMMED_MEAN, trim=0.2), 4, 4),
        (by(pb.RULE_TRIMMED_MEAN, trim=0.4), 5, 1),
        (by(pb.RULE_BUCKETED_MEDIAN, bucket=3), 9, 3),
        (by(pb.RULE_BUCKETED_MEDIAN, bucket=3), 11, 3),
        (by(pb.RULE_BUCKETED_MEDIAN, bucket=3), 8, 8),
        (by(pb.RULE_BUCKETED_MEDIAN, bucket=3), 12, 3),
        (by(pb.RULE_BUCKETED_MEDIAN, bucket=3), 5, 5),
        (by(pb.RULE_BUCKETED_MEDIAN, bucket=3), 2, 0),
        (by(pb.RULE_MULTI_KRUM, byzantine=1, select=3), 5, 3),
        (by(pb.RULE_MULTI_KRUM, byzantine=1, select=3), 4, 0),
        (by(pb.RULE_MULTI_KRUM, byzantine=0, select=4), 3, 0),
        (by(pb.RULE_GEOMETRIC_MEDIAN, iterations=8, smoothing=1e-6), 7, FLOOR),
        (by(pb.RULE_GEOMETRIC_MEDIAN, iterations=8, smoothing=1e-6), 2, 2),
        (by(pb.RULE_CENTRED_CLIPPING, iterations=1, norm=1.0), 7, FLOOR),
        (PRIVATE, 7, 7),
    ],
    ids=str,
)
def test_a_rule_says_over_how_many_owners_it_averages_at_least(
    aggregation: Aggregation, contributors: int, averaged: int
) -> None:
    assert aggregation.averages_over(contributors, FLOOR) == averaged


@pytest.mark.parametrize(
    ("aggregation", "most", "needed"),
    [
        (by(pb.RULE_MEAN), 7, FLOOR),
        (by(pb.RULE_MULTI_KRUM, byzantine=2, select=3), 9, 7),
        (by(pb.RULE_MULTI_KRUM, byzantine=2, select=3), 6, 7),
        (by(pb.RULE_MULTI_KRUM, byzantine=0, select=5), 9, 5),
        # Of 7 with 2 left out at each end 3 are left, of 5 with 1 left out 3 as well, of 4 with 1 left out 2.
        (by(pb.RULE_TRIMMED_MEAN, trim=0.29), 8, 5),
        # Three buckets of 6 owners have 2 each.
        (by(pb.RULE_BUCKETED_MEDIAN, bucket=2), 5, FLOOR),
        (by(pb.RULE_BUCKETED_MEDIAN, bucket=2), 6, 7),
    ],
    ids=str,
)
def test_as_many_contributors_are_needed_as_leave_the_floor_however_many_more_come(
    aggregation: Aggregation, most: int, needed: int
) -> None:
    assert aggregation.contributors_needed(most, FLOOR) == needed


@pytest.mark.parametrize("bucket", [2, 3])
@pytest.mark.parametrize("contributors", range(2, 12))
def test_the_median_of_bucket_means_depends_on_as_many_owners_as_is_said(
    bucket: int, contributors: int
) -> None:
    """By the definition: whoever's value moves the median is counted, wherever the values lie."""
    count = bucket_count(bucket, contributors)
    if not count:
        assert by(pb.RULE_BUCKETED_MEDIAN, bucket=bucket).averages_over(contributors, FLOOR) == 0
        return
    sizes = [len(range(start, contributors, count)) for start in range(count)]
    fewest = contributors
    for chosen in combinations(range(count), 1 if count % 2 else 2):
        fewest = min(fewest, sum(sizes[place] for place in chosen))
    said = by(pb.RULE_BUCKETED_MEDIAN, bucket=bucket).averages_over(contributors, FLOOR)
    assert bucket <= said <= fewest


@given(st.integers(0, 49), st.integers(2, 1024))
def test_a_share_that_is_trimmed_is_the_decimal_that_a_person_reads(
    hundredths: int, contributors: int
) -> None:
    assert trimmed(hundredths / 100, contributors) == hundredths * contributors // 100


def test_what_is_left_of_a_trimmed_mean_is_what_the_paper_keeps() -> None:
    values = sorted([9.0, 1.0, 2.0, 3.0, 100.0])
    left = trimmed(0.2, 5)
    assert mean(values[left : 5 - left]) == pytest.approx((2 + 3 + 9) / 3)
    assert median(values) == mean(values[trimmed(0.4, 5) : 5 - trimmed(0.4, 5)])


@pytest.mark.parametrize(
    ("rule", "given", "message"),
    [
        (pb.RULE_MEAN, {"trim": 0.1}, "rule has no number, and not trim"),
        (pb.RULE_TRIMMED_MEAN, {}, "rule needs trim, from 0 to 0.49"),
        (pb.RULE_TRIMMED_MEAN, {"trim": 0.5}, "trim = 0.5 must be 0 to 0.49"),
        (pb.RULE_TRIMMED_MEAN, {"trim": float("nan")}, "trim = nan must be 0 to 0.49"),
        (
            pb.RULE_MULTI_KRUM,
            {"byzantine": 1, "select": 3.5},
            "select = 3.5 must be a whole number",
        ),
        (pb.RULE_NORM_BOUNDED_MEAN, {"norm": 0.0}, "norm = 0 must be"),
        (
            pb.RULE_CENTRED_CLIPPING,
            {"norm": 1.0, "iterations": 0},
            "iterations = 0 must be 1 to 100",
        ),
    ],
)
def test_numbers_that_a_rule_cannot_have_are_refused_by_name(
    rule: "pb.Rule", given: Mapping[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        numbers_of(NUMBERS[rule], given, "rule")


def test_numbers_that_are_not_given_have_a_default_and_travel_all_the_same() -> None:
    adam = numbers_of(OPTIMIZER_NUMBERS[pb.OPTIMIZER_ADAM], {"lr": 0.1}, "adam")
    assert adam == {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-3}
    sent = aggregation_to_pb(Aggregation(optimizer=pb.OPTIMIZER_ADAM, optimizer_numbers=adam))
    assert aggregation_from_pb(sent).optimizer_numbers == adam
    del sent.optimizer_numbers["beta2"]
    with pytest.raises(InvalidMessage, match="without its beta2"):
        aggregation_from_pb(sent)


@pytest.mark.parametrize(
    ("aggregation", "weighting", "encoding", "message"),
    [
        (by(pb.RULE_TRIMMED_MEAN, trim=0.1), EXAMPLES, WHOLE, 'weighting = "equal"'),
        (by(pb.RULE_GEOMETRIC_MEDIAN), EXAMPLES, WHOLE, 'weighting = "equal"'),
        (PRIVATE, EXAMPLES, WHOLE, 'weighting = "equal"'),
        (by(pb.RULE_SUM), EQUAL, WHOLE, "no model"),
        (Aggregation(pb.CONTENT_GRADIENTS), EQUAL, WHOLE, "need an optimizer"),
        (GRADIENTS, EQUAL, pb.ENCODING_BF16_DELTAS, 'updates = "whole"'),
    ],
)
def test_parts_of_a_job_that_do_not_go_together_are_refused_in_a_sentence(
    aggregation: Aggregation, weighting: "pb.Weighting", encoding: "pb.Encoding", message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_aggregation(aggregation, weighting, encoding, all_floats=True)


def test_gradients_are_of_floating_point_tensors_alone() -> None:
    check_aggregation(GRADIENTS, EXAMPLES, WHOLE, all_floats=True)
    with pytest.raises(ValueError, match="floating-point tensors alone"):
        check_aggregation(GRADIENTS, EXAMPLES, WHOLE, all_floats=False)


def test_noise_is_added_to_floating_point_tensors_alone() -> None:
    check_aggregation(PRIVATE, EQUAL, WHOLE, all_floats=True)
    with pytest.raises(ValueError, match=r"integers and bools with the owners, by Task\(keeps"):
        check_aggregation(PRIVATE, EQUAL, WHOLE, all_floats=False)


def test_the_aggregator_needs_the_base_where_it_steps_from_it_or_measures_from_it() -> None:
    assert not by(pb.RULE_MEAN).needs_base
    assert not by(pb.RULE_MULTI_KRUM, byzantine=1, select=3).needs_base
    assert by(pb.RULE_NORM_BOUNDED_MEAN, norm=1.0).needs_base
    assert by(pb.RULE_CENTRED_CLIPPING, norm=1.0, iterations=1).needs_base
    assert PRIVATE.needs_base
    assert SGD.needs_base
