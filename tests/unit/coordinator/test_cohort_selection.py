"""Whose turn it is to take part, as those who attend come and go."""

import threading
from collections.abc import Iterable

import pytest

from cairn.errors import CairnError
from cairn.protocol.messages import Manifest
from cairn.v1 import round_pb2 as pb
from coordinator.cohort_selection import CohortSelection, SelectedCohort
from coordinator.groups import Sampling
from coordinator.needed_owners import Needed
from coordinator.owner_sessions import OwnerSessions, OwnerStream
from coordinator.schedule import Step

FLOOR = 2
A, B, C = ("alice", "anna", "aron"), ("bert", "bob"), ("carl", "carol", "cora")
SAMPLING = Sampling((A, B, C), 5, "tumours")
LONG, SHORT = 30.0, 0.01


def manifest_of(number: int, cohort: Iterable[str], phase: "pb.Phase" = pb.PHASE_TRAIN) -> Manifest:
    return Manifest(
        federation="clinics",
        job="tumours",
        job_digest=bytes(32),
        round=number,
        phase=phase,
        cohort=tuple(cohort),
        base_digest=bytes(32),
        previous_release_digest=b"",
        weighting=pb.WEIGHTING_EQUAL,
        floor=FLOOR,
        deadline_unix_ms=1,
        lease_seconds=15,
        nonce=bytes(32),
        ledger_head=bytes(32),
        ledger_number=1,
    )


class Hall:
    """The owners of three groups, who come and go, and what is selected of them."""

    def __init__(self, *groups: tuple[str, ...], seconds: float = LONG) -> None:
        self.sessions = OwnerSessions()
        self.selection = CohortSelection(SAMPLING, seconds, self.sessions)
        self.streams: dict[str, OwnerStream] = {}
        self.told: list[list[str]] = []
        self.come(*(owner for group in groups for owner in group))

    def come(self, *owners: str) -> None:
        self.streams |= {owner: self.sessions.enter(owner) for owner in owners}

    def go(self, *owners: str) -> None:
        for owner in owners:
            self.sessions.leave(owner, self.streams.pop(owner))

    def next(self, number: int, phase: "pb.Phase" = pb.PHASE_TRAIN) -> SelectedCohort:
        return self.selection.next(Step(number, phase), FLOOR, self.told.append)

    def note(self, number: int, cohort: Iterable[str], *missed: str) -> dict[str, int]:
        return dict(
            self.selection.note(manifest_of(number, cohort), frozenset(missed), released=True)
        )


def turns(numbers: Iterable[int]) -> list[tuple[str, ...]]:
    return [SAMPLING.turns(number)[0] for number in numbers]


def test_where_all_attend_every_round_is_of_the_group_whose_turn_it_is() -> None:
    hall = Hall(A, B, C)
    for number, group in zip(range(1, 10), turns(range(1, 10)), strict=True):
        selected = hall.next(number)
        assert selected == SelectedCohort(list(group), frozenset(A + B + C), (), ())
        hall.note(number, selected.cohort)
    assert hall.told == []


def test_owners_of_other_groups_are_not_left_out() -> None:
    hall = Hall(A, B, C)
    assert all(hall.next(number).left_out == () for number in range(1, 7))


def test_after_a_restart_the_same_rounds_are_of_the_same_groups() -> None:
    hall = Hall(A, B, C)
    before = [hall.next(number).cohort for number in range(1, 8)]
    assert [Hall(A, B, C).next(number).cohort for number in range(1, 8)] == before


def test_a_restarted_coordinator_waits_for_the_group_whose_turn_it_is() -> None:
    """It goes on with the open round of another group, and has not looked for anybody since."""
    last, then = turns([1, 2])
    hall = Hall(last)
    hall.note(1, last)
    rest = [owner for group in (A, B, C) for owner in group if group != last]
    told: list[list[str]] = []

    def they_come(present: list[str]) -> None:
        told.append(present)
        hall.come(*rest)

    selected = hall.selection.next(Step(2, pb.PHASE_TRAIN), FLOOR, they_come)
    assert selected.cohort == list(then)
    assert told == [list(last)]


def test_a_group_of_which_too_few_attend_is_passed_over_at_once_and_comes_back() -> None:
    number = next(n for n in range(3, 9) if turns([n]) != turns([n - 1]))
    gone, stands_in = SAMPLING.turns(number)[:2]
    hall = Hall(A, B, C)
    hall.note(number - 2, hall.next(number - 2).cohort)
    hall.go(*gone[1:])
    hall.note(number - 1, hall.next(number - 1).cohort)  # where it is seen to be gone
    selected = hall.next(number)
    assert selected.cohort == list(stands_in)
    assert selected.passed_over == (1 + SAMPLING.groups.index(gone),)
    assert hall.told == []
    hall.come(*gone[1:])
    again = next(n for n in range(number + 1, number + 6) if turns([n]) == [gone])
    assert hall.next(again) == SelectedCohort(list(gone), frozenset(A + B + C), (), ())


def test_where_no_group_reaches_the_floor_it_is_said_who_is_missing() -> None:
    hall = Hall(("alice",), ("bob",), seconds=SHORT)
    selected = hall.next(1)
    with pytest.raises(CairnError) as end:
        hall.selection.check(selected, Needed(FLOOR))
    assert str(end.value).startswith(
        "after gather_seconds = 0.01 only 1 of group 1 and 1 of group 2 and 0 of group 3 of at least 2 owners attend."
        " Not there: anna, aron, bert, carl, carol, cora. Start their owner nodes"
    )


def test_owners_that_the_rule_needs_above_the_floor_are_waited_for_and_asked_for_by_its_name() -> (
    None
):
    alone = Sampling((A,), 5, "tumours")
    sessions = OwnerSessions()
    selection = CohortSelection(alone, SHORT, sessions)
    for owner in A[:2]:
        sessions.enter(owner)
    needed = Needed(3, "multi_krum")
    selected = selection.next(Step(1, pb.PHASE_TRAIN), needed.owners, lambda _: None)
    with pytest.raises(
        CairnError, match=r"only 2 of at least 3 owners attend \(multi_krum needs 3\)"
    ):
        selection.check(selected, needed)


def test_one_group_that_comes_is_enough() -> None:
    hall = Hall(seconds=LONG)
    hall.note(1, A)
    hall.note(1, B)
    hall.note(1, C)

    def they_come(present: list[str]) -> None:
        assert present == []
        hall.come(*B)

    assert hall.selection.next(Step(2, pb.PHASE_TRAIN), FLOOR, they_come).cohort == list(B)


def test_a_release_is_evaluated_by_those_who_trained_it_though_it_was_anothers_turn() -> None:
    hall = Hall(A, B, C)
    trained = SAMPLING.turns(1)[2]
    hall.next(1)
    hall.note(1, trained)
    assert hall.next(1, pb.PHASE_EVALUATE).cohort == list(trained)


def test_after_a_restart_a_release_is_evaluated_by_those_who_trained_it() -> None:
    hall = Hall(A, B, C)
    trained = SAMPLING.turns(1)[1]
    hall.selection.was_trained_by(trained[:FLOOR])
    assert hall.next(1, pb.PHASE_EVALUATE).cohort == list(trained)


def test_an_owner_that_fails_is_left_out_of_its_groups_turns_and_never_below_the_floor() -> None:
    """Three misses, two turns of its group without it, then a try: whatever other groups do between."""
    hall = Hall(A, B, C)
    invited = {"aron": 0, "bob": 0}
    order = []
    for number in range(1, 28):
        selected = hall.next(number)
        missed = set(invited) & set(selected.cohort)
        for owner in missed:
            invited[owner] += 1
        if selected.cohort[0] in A:
            order.append("aron" in selected.cohort)
            assert selected.left_out == (() if order[-1] else ("aron",))
        back_in = hall.note(number, selected.cohort, *missed)
        assert all((number - 1) % 3 == 0 for number in back_in.values())  # a cycle's first round
    assert order == [True, True, True, False, False, True, False, False, False]
    assert invited["bob"] == 9  # its group has but the floor


def test_without_groups_everybody_is_one() -> None:
    everybody = tuple(sorted(A + B))
    selection = CohortSelection(Sampling((everybody,), 0, "job"), SHORT, OwnerSessions())
    selected = selection.next(Step(1, pb.PHASE_TRAIN), FLOOR, lambda _: None)
    with pytest.raises(
        CairnError, match=r"^after gather_seconds = 0\.01 only 0 of at least 2 owners attend"
    ):
        selection.check(selected, Needed(FLOOR))


def test_an_owner_that_is_doubted_has_a_moment_to_come_back() -> None:
    everybody = tuple(sorted(A + B))
    sessions = OwnerSessions()
    selection = CohortSelection(Sampling((everybody,), 0, "job"), LONG, sessions)
    for owner in everybody:
        sessions.enter(owner)
    doubted = sessions.disconnect(everybody[:1])
    selection.note(manifest_of(1, everybody), doubted, doubted, released=True)
    back = threading.Timer(0.2, sessions.enter, everybody[:1])  # when it is waited for
    back.start()
    selected = selection.next(Step(2, pb.PHASE_TRAIN), FLOOR, lambda _: None)
    back.join()
    assert selected.cohort == list(everybody)
