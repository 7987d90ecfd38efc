"""Groups of owners that never change, and whose turn each round is."""

from fractions import Fraction
from hashlib import sha256
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from cairn.protocol.cohorts import check_groups
from coordinator.groups import Sampling, group_count, groups_of

SEVEN = ["alice", "bob", "carol", "dave", "erin", "frank", "grace"]
seeds = st.integers(-(1 << 63), (1 << 63) - 1)
# As they came out once, so that no change moves the groups of a job that is under way.
GOLDEN_GROUPS = (("alice", "carol", "erin"), ("bob", "dave", "frank", "grace"))
GOLDEN_TURNS = "bcaacbbacacb"
names = st.sets(st.from_regex(r"[a-z0-9][a-z0-9-]{0,8}", fullmatch=True), min_size=2, max_size=40)
shares = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)


@given(names, shares, st.integers(2, 5), seeds)
def test_groups_are_disjoint_cover_all_owners_reach_floor_and_fraction_and_are_even(
    owners: set[str], fraction: float, floor: int, seed: int
) -> None:
    count = group_count(len(owners), fraction, floor)
    if count < 2:
        return
    groups = groups_of(owners, count, seed, "tumours")
    assert sorted(chain(*groups)) == sorted(owners)
    sizes = [len(group) for group in groups]
    assert min(sizes) >= floor
    assert min(sizes) >= Fraction(str(fraction)) * len(owners)
    assert max(sizes) - min(sizes) <= 1
    assert check_groups(groups, sorted(owners), floor) == groups  # as it travels


@given(st.integers(2, 200), shares, st.integers(2, 5))
def test_there_are_as_many_groups_as_can_be(owners: int, fraction: float, floor: int) -> None:
    count = group_count(owners, fraction, floor)
    share = Fraction(str(fraction)) * owners
    smallest_of_one_more = owners // (count + 1)
    assert smallest_of_one_more < floor or smallest_of_one_more < share


def test_a_fraction_is_the_decimal_that_was_written() -> None:
    assert 0.07 * 100 > 7  # as binary64 has it: 14 groups of 7 would become 12 of 8
    assert group_count(100, 0.07, 2) == 14
    assert group_count(10, 0.3, 3) == 3
    assert group_count(10, 0.1, 3) == 3
    assert group_count(7, 0.5, 3) == 1
    assert group_count(7, 1, 3) == 1


def test_the_groups_of_a_job_are_the_same_in_every_process_and_version() -> None:
    """The order is that of SHA-256 over seed, job and name; the groups take from it in turns."""
    dealt = sorted(SEVEN, key=lambda name: sha256(b"42\0tumours\0owner\0" + name.encode()).digest())
    expected = tuple(sorted((tuple(sorted(dealt[0::2])), tuple(sorted(dealt[1::2])))))
    assert groups_of(SEVEN, 2, 42, "tumours") == expected
    assert groups_of(SEVEN[::-1], 2, 42, "tumours") == expected
    assert expected == GOLDEN_GROUPS


def test_the_turns_of_a_job_are_the_same_in_every_process_and_version() -> None:
    groups = tuple((letter, f"{letter}2") for letter in "abc")
    sampling = Sampling(groups, -1, "tumours")
    first = [sampling.turns(number)[0][0] for number in range(1, 13)]
    for cycle in range(4):

        def rank(letter: str, cycle: int = cycle) -> bytes:
            return sha256(f"-1\0tumours\0turn\0{cycle}\0{letter}".encode()).digest()

        assert first[3 * cycle : 3 * cycle + 3] == sorted("abc", key=rank)
    assert "".join(first) == GOLDEN_TURNS


@given(names, st.integers(1, 6), seeds, st.integers(0, 50))
def test_every_cycle_is_the_turn_of_each_group_once(
    owners: set[str], count: int, seed: int, cycle: int
) -> None:
    sampling = Sampling(groups_of(owners, min(count, len(owners)), seed, "job"), seed, "job")
    count = len(sampling.groups)
    rounds = range(1 + cycle * count, 1 + (cycle + 1) * count)
    assert sorted(sampling.turns(number)[0] for number in rounds) == sorted(sampling.groups)
    for number in rounds:
        assert sorted(sampling.turns(number)) == sorted(sampling.groups)
        assert sampling.cycle(number) == cycle + 1
    assert sampling.first_round(cycle + 1) == rounds[0]


def test_another_seed_or_another_job_divides_the_owners_otherwise() -> None:
    divisions = {groups_of(SEVEN, 2, seed, job) for seed in range(10) for job in ("one", "two")}
    assert len(divisions) > 10


def test_a_groups_number_is_told_only_where_there_are_several() -> None:
    two = Sampling((("alice", "bob"), ("carol", "dave", "erin")), 0, "job")
    assert [two.number_of(cohort) for cohort in (["bob"], ["carol", "erin"])] == [1, 2]
    assert two.group_of(["erin", "dave"]) == ("carol", "dave", "erin")
    assert Sampling((("alice", "bob"),), 0, "job").number_of(["bob"]) is None
