"""Which releases may say what beside one another."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aggregator_node.rounds.disclosure import Average, ReleaseOverlap, check_difference
from aggregator_node.rounds.upload import RoundContext
from cairn.errors import WrongState
from cairn.protocol.aggregation import Aggregation
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.rounds.test_upload import CONTEXT

TRAIN, EVALUATE = pb.PHASE_TRAIN, pb.PHASE_EVALUATE
NUMBERS = iter(range(1 << 20))


def context(
    phase: "pb.Phase", *, share: float = 0.5, weighting: "pb.Weighting" = pb.WEIGHTING_EQUAL
) -> RoundContext:
    manifest = replace(CONTEXT.manifest, phase=phase, largest_share=share)
    return RoundContext(manifest, replace(CONTEXT.job, weighting=weighting), CONTEXT.bounds)


def add(
    overlap: ReleaseOverlap, of: RoundContext, owners: str, *, has_metrics: bool = True
) -> bool:
    digest = next(NUMBERS).to_bytes(32, "big")
    return overlap.add(digest, of, owners, has_metrics=has_metrics)


@pytest.fixture
def overlap() -> ReleaseOverlap:
    return ReleaseOverlap(any_base=False)


@pytest.mark.parametrize(
    ("owners", "says"), [("abc", True), ("def", True), ("abcd", False), ("ab", False)]
)
def test_after_an_evaluation_a_training_says_metrics_of_the_same_owners_or_of_others_only(
    overlap: ReleaseOverlap, owners: str, *, says: bool
) -> None:
    assert add(overlap, context(EVALUATE), "abc")
    overlap.check(context(TRAIN), owners)
    assert add(overlap, context(TRAIN), owners) is says


def test_after_a_training_without_metrics_any_owners_may_evaluate(overlap: ReleaseOverlap) -> None:
    assert not add(overlap, context(TRAIN), "abcd", has_metrics=False)
    assert add(overlap, context(EVALUATE), "abc")


def test_after_a_training_with_metrics_other_owners_may_not_evaluate(
    overlap: ReleaseOverlap,
) -> None:
    assert add(overlap, context(TRAIN), "abcd")
    with pytest.raises(WrongState):
        overlap.check(context(EVALUATE), "abc")
    with pytest.raises(WrongState):
        add(overlap, context(EVALUATE), "abc")
    assert add(overlap, context(EVALUATE), "abcd")


def test_an_evaluation_counts_as_one_with_metrics_though_it_has_none(
    overlap: ReleaseOverlap,
) -> None:
    add(overlap, context(EVALUATE), "abc", has_metrics=False)
    with pytest.raises(WrongState):
        overlap.check(context(EVALUATE), "abcd")


def test_metrics_that_were_left_out_are_not_compared_with_later_ones(
    overlap: ReleaseOverlap,
) -> None:
    assert add(overlap, context(EVALUATE), "abc")
    assert not add(overlap, context(TRAIN), "abcd")
    assert add(overlap, context(EVALUATE), "abc")


def test_what_was_not_released_after_all_is_compared_with_nothing(overlap: ReleaseOverlap) -> None:
    overlap.add(b"1" * 32, context(TRAIN), "abcd", has_metrics=True)
    overlap.forget(b"1" * 32, context(TRAIN))
    assert add(overlap, context(TRAIN), "abc")
    assert add(overlap, context(EVALUATE), "abc")


@pytest.mark.parametrize("phases", [(TRAIN, EVALUATE), (EVALUATE, TRAIN), (TRAIN, TRAIN)])
def test_where_any_base_is_compared_every_phase_counts_the_same_owners(
    phases: tuple["pb.Phase", "pb.Phase"],
) -> None:
    overlap = ReleaseOverlap(any_base=True)
    add(overlap, context(phases[0]), "abc", has_metrics=False)
    with pytest.raises(WrongState):
        overlap.check(context(phases[1]), "abcd")
    add(overlap, context(phases[1]), "abc")
    add(overlap, context(phases[1]), "def")


def test_where_weights_may_be_capped_there_is_one_release_of_a_base_and_owners(
    overlap: ReleaseOverlap,
) -> None:
    add(overlap, context(TRAIN), "ab")
    overlap.check(context(TRAIN, share=0.4), "ab")  # all count the same, so no share can cap one
    by_examples = pb.WEIGHTING_EXAMPLES
    assert add(overlap, context(TRAIN, weighting=by_examples), "cd")
    with pytest.raises(WrongState):
        overlap.check(context(TRAIN, weighting=by_examples), "cd")
    with pytest.raises(WrongState):
        overlap.check(context(EVALUATE, weighting=by_examples), "cd")


MEAN = Aggregation()
KRUM = Aggregation(rule=pb.RULE_MULTI_KRUM, rule_numbers={"byzantine": 0, "select": 2})
STEPS = Aggregation(optimizer=pb.OPTIMIZER_SGD, optimizer_numbers={"lr": 0.5, "momentum": 0.9})
BOUNDED = Aggregation(rule=pb.RULE_NORM_BOUNDED_MEAN, rule_numbers={"norm": 1.0})


@pytest.mark.parametrize(
    ("first", "second", "passes"),
    [
        (MEAN, MEAN, True),
        (
            BOUNDED,
            BOUNDED,
            False,
        ),  # at another learning rate the longest update may not be shortened
        (MEAN, BOUNDED, False),  # what was cut off
        (MEAN, KRUM, False),  # whom it left out
        (KRUM, KRUM, False),  # another's update may have moved who is selected
        (BOUNDED, replace(BOUNDED, rule_numbers={"norm": 2.0}), False),
        (STEPS, STEPS, True),  # an optimizer steps along the same mean
        (replace(BOUNDED, content=pb.CONTENT_GRADIENTS), BOUNDED, False),
    ],
)
def test_of_one_base_updates_become_the_same_in_every_release(
    overlap: ReleaseOverlap, first: Aggregation, second: Aggregation, *, passes: bool
) -> None:
    one, other = (
        replace(each, job=replace(each.job, aggregation=by))
        for each, by in ((context(TRAIN), first), (context(TRAIN), second))
    )
    assert add(overlap, one, "abc")
    overlap.check(other, "def")  # nobody in common
    if passes:
        assert add(overlap, other, "abc")
        return
    with pytest.raises(WrongState, match="tell of single owners"):
        add(overlap, other, "abc")


def test_where_any_base_is_compared_a_job_with_an_optimizer_is_trained_and_evaluated() -> None:
    overlap = ReleaseOverlap(any_base=True)
    for phase in (TRAIN, EVALUATE, TRAIN):
        of = context(phase)
        add(overlap, replace(of, job=replace(of.job, aggregation=STEPS)), "abc")


def test_the_metrics_of_any_rule_are_those_of_the_same_owners(overlap: ReleaseOverlap) -> None:
    of = context(TRAIN)
    assert add(overlap, replace(of, job=replace(of.job, aggregation=KRUM)), "abc")
    assert add(overlap, context(EVALUATE), "abc")


def average(owners: str, most: int = 1, *, may_count_otherwise: bool = False) -> Average:
    return Average(frozenset(owners), 1, most, b"", may_count_otherwise)


@pytest.mark.parametrize(
    ("counted", "earlier", "passes"),
    [
        ("abcd", ["abcd"], True),  # the same again
        ("abcd", [], True),
        ("abc", ["abcd"], False),  # without one
        ("abcd", ["abc"], False),  # with one more
        ("abce", ["abcd"], False),  # one for another
        ("ab", ["abcd"], False),  # without two: with "cd" as well, it would be nobody's
        ("abef", ["abcd"], False),  # two for two others: see the next test
        ("abcd", ["efgh"], True),  # nobody in common
        ("abcd", ["efgh", "abc"], False),  # one of many is enough
    ],
)
def test_comparable_releases_count_the_same_owners_or_have_nobody_in_common(
    counted: str, earlier: list[str], *, passes: bool
) -> None:
    others = [average(owners) for owners in earlier]
    if passes:
        check_difference(average(counted), others)
        return
    with pytest.raises(WrongState, match="tell of single owners") as caught:
        check_difference(average(counted), others)
    assert caught.value.reason == pb.REASON_COHORT_DIFFERENCE


def test_the_same_owners_weighted_otherwise_are_refused() -> None:
    by_examples = average("abcd", most=9)
    check_difference(by_examples, [by_examples])
    check_difference(by_examples, [average("efgh")])
    capped = average("abcd", most=9, may_count_otherwise=True)
    for otherwise in (average("abcd"), average("abcd", most=8), average("abef"), capped):
        with pytest.raises(WrongState, match="otherwise") as caught:
            check_difference(by_examples, [otherwise])
        assert caught.value.reason == pb.REASON_COHORT_DIFFERENCE


def test_the_same_owners_count_otherwise_for_sure_only_where_no_weight_may_be_capped() -> None:
    capped = average("abcd", most=9, may_count_otherwise=True)
    check_difference(capped, [average("efgh", most=9, may_count_otherwise=True)])
    with pytest.raises(WrongState, match="capped") as caught:
        check_difference(capped, [capped])
    assert caught.value.reason == pb.REASON_COHORT_DIFFERENCE


def test_no_number_of_releases_that_pass_tells_of_fewer_owners_than_one_of_them() -> None:
    """By linear algebra: nothing but the released sums themselves is made of so few owners.

    Three averages that differ by many owners in every pair could tell of a single one: with all of
    "abcde", "cde" and "abe", the first less the others is what e contributed.
    """
    names = "abcde"
    sets = ["".join(c) for size in (2, 3, 4, 5) for c in itertools.combinations(names, size)]
    for order in (sets, sets[::-1], sets[7:] + sets[:7]):
        released: list[str] = []
        for one in order:
            try:
                check_difference(average(one), [average(other) for other in released])
            except WrongState:
                continue
            released.append(one)
        rows: Any = np.array([[float(name in one) for name in names] for one in released])
        for few in (c for size in (1, 2) for c in itertools.combinations(names, size)):
            if "".join(few) in released:
                continue
            alone = np.array([float(name in few) for name in names])
            rank = np.linalg.matrix_rank(np.vstack([rows, alone]))
            assert rank == np.linalg.matrix_rank(rows) + 1, (released, few)
