"""What an update counts at the most, held against a search through every cap and every order of arrival."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aggregator_node.aggregation.weight_caps import LargestShare
from cairn.protocol.limits import LARGEST_SHARE, MAX_COHORT, MAX_EXAMPLES

HALF = LargestShare(LARGEST_SHARE)
SHARES = (0.5, 0.49, 0.4, 1 / 3, 0.25, 0.2, 0.1)
shares = st.one_of(st.sampled_from(SHARES), st.floats(0.02, 0.5))
small = st.lists(st.integers(1, 40), min_size=1, max_size=8)
weights = st.lists(
    st.one_of(st.integers(1, 9), st.integers(1, MAX_EXAMPLES), st.just(MAX_EXAMPLES)),
    min_size=1,
    max_size=12,
)


def is_kept(counts: Sequence[int], share: float) -> bool:
    """Whether nobody has more than the share of what is counted, and nobody half of it for a half."""
    largest = Fraction(max(counts), sum(counts))
    return largest < Fraction(1, 2) and largest <= Fraction(share)


@pytest.mark.parametrize(
    ("of", "cap"),
    [
        ([50_000, 50, 50, 50], 149),
        ([50_000, 1, 1, 1], 2),
        ([5, 3, 2], 4),  # with 5 its owner would have exactly half
        ([4, 3, 2], 4),
        ([7, 7, 7], 7),
        ([9, 9, 1], 9),
        ([1000, 1, 1], 1),
        ([1000, 3], 3),  # of two, both count the same
        ([12], 12),
        ([22, 51, 73, 124, 98], 124),  # hospitals that differ, and none outweighs the others
    ],
)
def test_the_cap_of_a_half_leaves_nobody_half_of_the_weight(of: list[int], cap: int) -> None:
    assert HALF.cap(of) == cap


@given(of=small, share=shares)
def test_the_cap_is_the_largest_that_keeps_everybody_within_the_share(
    of: list[int], share: float
) -> None:
    caps = [c for c in range(1, max(of) + 1) if is_kept([min(w, c) for w in of], share)]
    assert LargestShare(share).cap(of) == max(caps, default=min(of))


@given(of=weights, share=shares)
def test_nobody_counts_more_than_the_share_or_all_count_the_same(
    of: list[int], share: float
) -> None:
    cap = LargestShare(share).cap(of)
    counts = [min(weight, cap) for weight in of]
    assert is_kept(counts, share) or (len(set(counts)) == 1 and len(of) * Fraction(share) <= 1)


@given(of=weights, share=shares)
def test_weights_of_which_none_is_above_the_share_stay_as_they_are(
    of: list[int], share: float
) -> None:
    if is_kept(of, share):
        assert LargestShare(share).cap(of) >= max(of)


@given(of=weights, share=shares, more=st.integers(1, MAX_EXAMPLES))
def test_another_update_never_lowers_a_cap_that_keeps_the_share(
    of: list[int], share: float, more: int
) -> None:
    rule = LargestShare(share)
    if is_kept([min(w, rule.cap(of)) for w in of], share):
        assert rule.cap([*of, more]) >= rule.cap(of)


def held_at_most(rule: LargestShare, of: Sequence[int]) -> int:
    """Let updates of these weights come, add what is decided, and check that it was decided rightly."""
    cap, most = rule.cap(of), 0
    seen: dict[str, int] = {}
    held: set[str] = set()
    for number, weight in enumerate(of):
        seen[str(number)] = weight
        undecided = set(rule.undecided(seen))
        assert undecided <= held | {str(number)}  # what was added once is in the sums
        added = (held | {str(number)}) - undecided
        assert all(seen[name] <= cap for name in added)
        held, most = undecided, max(most, len(undecided))
    return most


@example(of=[5, 3], share=0.5)
@example(of=[3, 3, 3, 3, 3], share=0.25)
@given(of=weights, share=shares)
def test_only_what_cannot_be_above_the_cap_is_added_before_the_end(
    of: list[int], share: float
) -> None:
    rule = LargestShare(share)
    assert held_at_most(rule, of) <= rule.most_capped


@given(of=st.lists(st.integers(1, 40), min_size=1, max_size=5), share=shares)
def test_that_is_so_in_every_order_of_arrival(of: list[int], share: float) -> None:
    for order in permutations(of):
        held_at_most(LargestShare(share), order)


def test_of_updates_that_do_not_outweigh_the_others_none_is_held_to_the_end() -> None:
    seen = {"a": 124, "b": 98, "c": 73}
    assert HALF.undecided({"a": 124}) == HALF.undecided({"a": 124, "b": 98}) == ["a"]
    assert HALF.undecided(seen) == []


@pytest.mark.parametrize(
    ("share", "most"), [(0.5, 1), (0.49, 2), (1 / 3, 3), (0.25, 3), (0.2, 4), (0.1, 9)]
)
def test_few_updates_can_be_above_the_cap(share: float, most: int) -> None:
    assert LargestShare(share).most_capped == most


@pytest.mark.parametrize(
    ("least", "most", "count", "may"),
    [(1, 1, 2, False), (1, 2, 2, True), (10, 19, 3, False), (10, 20, 3, True), (10, 39, 5, False)],
)
def test_some_bounds_of_the_weights_rule_out_a_cap(
    least: int, most: int, count: int, *, may: bool
) -> None:
    assert HALF.may_cap(least, most, count) is may


def test_the_largest_cohort_is_decided_in_a_moment() -> None:
    of = {f"owner{n}": MAX_EXAMPLES // (n + 1) for n in range(MAX_COHORT)}
    assert len(LargestShare(0.001).undecided(of)) <= LargestShare(0.001).most_capped
