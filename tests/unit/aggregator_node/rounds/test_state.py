"""The state machine of a round, by its events and a clock that the test sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator_node.rounds.state import Ending, OwnerState, Round
from cairn.errors import CairnError, CallerNotAllowed, WrongState
from cairn.protocol.reasons import DEPENDING_ON_DATA
from cairn.v1 import round_pb2 as pb

LEASE = 15.0
DEADLINE = 600.0


def opened(*cohort: str, floor: int = 2) -> Round:
    return Round.open(cohort, floor, LEASE, deadline=DEADLINE, now=0.0)


def test_a_round_waits_while_owners_hold_their_leases() -> None:
    round_ = opened("alice", "bob")
    round_.join("alice", now=1.0)
    assert round_.settle(now=14.0) is None


def test_a_round_is_sealed_as_soon_as_everybody_was_accepted() -> None:
    round_ = opened("alice", "bob")
    for owner in ("alice", "bob"):
        round_.join(owner, now=1.0)
        round_.accept(owner)
    assert round_.settle(now=2.0) is Ending.SEAL
    assert round_.exclusions(now=2.0) == []


def test_an_owner_that_never_joins_costs_one_lease() -> None:
    round_ = opened("alice", "bob", "carol")
    for owner in ("alice", "bob"):
        round_.join(owner, now=1.0)
        round_.accept(owner)
    assert round_.settle(now=LEASE - 0.1) is None
    assert round_.next_event() == LEASE
    assert round_.settle(now=LEASE) is Ending.SEAL
    assert round_.exclusions(now=LEASE) == [("carol", pb.REASON_LEASE_EXPIRED)]


def test_renewing_keeps_an_owner_in_the_round_beyond_its_first_lease() -> None:
    round_ = opened("alice", "bob", floor=2)
    for now in range(0, 100, 10):
        round_.join("alice", now=float(now))
        round_.join("bob", now=float(now))
        assert round_.settle(now=float(now)) is None


def test_a_lost_owner_may_come_back_while_the_round_is_open() -> None:
    round_ = opened("alice", "bob", "carol")
    round_.join("alice", now=10.0)
    round_.join("bob", now=10.0)
    round_.settle(now=LEASE)
    assert round_.state_of("carol") is OwnerState.LOST
    round_.join("carol", now=LEASE + 1)
    round_.accept("carol")
    assert round_.state_of("carol") is OwnerState.ACCEPTED


def test_the_deadline_seals_what_is_at_least_the_floor() -> None:
    round_ = opened("alice", "bob", "carol")
    for owner in ("alice", "bob", "carol"):
        round_.join(owner, now=DEADLINE - 1)
    round_.accept("alice")
    round_.accept("bob")
    assert round_.settle(now=DEADLINE - 0.5) is None
    assert round_.settle(now=DEADLINE) is Ending.SEAL
    assert round_.exclusions(now=DEADLINE) == [("carol", pb.REASON_DEADLINE)]


def test_the_deadline_aborts_what_is_below_the_floor() -> None:
    round_ = opened("alice", "bob", "carol", floor=3)
    for owner in ("alice", "bob", "carol"):
        round_.join(owner, now=DEADLINE - 1)
    round_.accept("alice")
    round_.accept("bob")
    assert round_.settle(now=DEADLINE) is Ending.ABORT


def test_a_round_ends_at_once_when_too_few_owners_are_left_for_the_floor() -> None:
    round_ = opened("alice", "bob", "carol", floor=3)
    round_.decline("bob", pb.REASON_UNKNOWN_TASK)
    assert round_.settle(now=0.1) is Ending.ABORT
    assert round_.exclusions(now=0.1) == [("bob", pb.REASON_UNKNOWN_TASK)]


def test_a_round_that_is_ended_early_does_not_tell_who_had_pushed() -> None:
    round_ = opened("alice", "bob", "carol")
    for owner in ("alice", "bob", "carol"):
        round_.join(owner, now=1.0)
    round_.accept("alice")
    assert round_.exclusions(now=2.0) == []


def test_a_refused_owner_is_not_awaited_and_not_counted() -> None:
    round_ = opened("alice", "bob", "carol")
    for owner in ("alice", "bob", "carol"):
        round_.join(owner, now=1.0)
    round_.refuse("carol", pb.REASON_NON_FINITE)
    round_.accept("alice")
    round_.accept("bob")
    assert round_.settle(now=2.0) is Ending.SEAL
    assert round_.accepted == ["alice", "bob"]
    assert round_.exclusions(now=2.0) == [("carol", pb.REASON_NOT_COUNTED)]
    with pytest.raises(WrongState) as refusal:  # the owner itself is told
        round_.check_not_refused("carol")
    assert refusal.value.reason == pb.REASON_NON_FINITE


@pytest.mark.parametrize("reason", DEPENDING_ON_DATA)
def test_a_cause_that_may_depend_on_an_owners_data_is_told_to_nobody_else(
    reason: "pb.Reason",
) -> None:
    for leave in (Round.decline, Round.refuse):
        round_ = opened("alice", "bob", "carol")
        round_.join("carol", now=1.0)
        leave(round_, "carol", reason)
        assert round_.exclusions(now=2.0) == [("carol", pb.REASON_NOT_COUNTED)]


@pytest.mark.parametrize("act", ["join", "decline", "accept", "refuse"])
def test_a_stranger_can_do_nothing(act: str) -> None:
    round_ = opened("alice", "bob")
    acts = {
        "join": lambda: round_.join("eve", now=1.0),
        "decline": lambda: round_.decline("eve", pb.REASON_STOPPING),
        "accept": lambda: round_.accept("eve"),
        "refuse": lambda: round_.refuse("eve", pb.REASON_NON_FINITE),
    }
    with pytest.raises(CallerNotAllowed):
        acts[act]()
    assert round_.settle(now=1.0) is None


def test_an_update_is_not_accepted_before_its_owner_has_joined() -> None:
    round_ = opened("alice", "bob")
    with pytest.raises(WrongState):
        round_.accept("alice")
    assert round_.state_of("alice") is OwnerState.INVITED


def test_a_decline_is_final() -> None:
    round_ = opened("alice", "bob", "carol")
    round_.decline("alice", pb.REASON_SETTING_REFUSED)
    with pytest.raises(WrongState):
        round_.join("alice", now=1.0)
    with pytest.raises(WrongState):
        round_.accept("alice")
    assert round_.state_of("alice") is OwnerState.DECLINED


@pytest.mark.parametrize(
    ("awaited", "at_a_time", "ends"),
    [(4, 1, 150.0), (4, 2, 300.0), (3, 2, 300.0), (2, 2, DEADLINE), (0, 2, DEADLINE)],
)
def test_those_who_may_still_push_share_the_rest_of_the_round(
    awaited: int, at_a_time: int, ends: float
) -> None:
    """Also where none is left but one whose lease lapsed while it waited in line."""
    owners = ["alice", "bob", "carol", "dora"]
    round_ = opened(*owners)
    for owner in owners[awaited:]:
        round_.decline(owner, pb.REASON_STOPPING)
    assert round_.end_of_turn(0.0, at_a_time) == ends


def test_a_repeated_join_after_acceptance_changes_nothing() -> None:
    round_ = opened("alice", "bob")
    round_.join("alice", now=1.0)
    round_.accept("alice")
    round_.join("alice", now=2.0)
    assert round_.accepted == ["alice"]


_OWNERS = ("alice", "bob", "carol", "dora")
_ACTS = st.tuples(
    st.sampled_from(("join", "decline", "accept", "refuse", "wait")),
    st.sampled_from(_OWNERS),
    st.floats(min_value=0, max_value=20),
)


@given(acts=st.lists(_ACTS, max_size=60), floor=st.integers(min_value=2, max_value=4))
def test_no_sequence_of_events_seals_a_round_below_its_floor(
    acts: list[tuple[str, str, float]], floor: int
) -> None:
    round_ = opened(*_OWNERS, floor=floor)
    now = 0.0
    for act, owner, seconds in acts:
        before = round_.state_of(owner)
        try:
            match act:
                case "join":
                    round_.join(owner, now)
                case "decline":
                    round_.decline(owner, pb.REASON_STOPPING)
                case "accept":
                    round_.accept(owner)
                case "refuse":
                    round_.refuse(owner, pb.REASON_NON_FINITE)
                case _:
                    now += seconds
        except CairnError:
            assert round_.state_of(owner) is before
        ending = round_.settle(now)
        accepted = [name for name in _OWNERS if round_.state_of(name) is OwnerState.ACCEPTED]
        if ending is Ending.SEAL:
            assert len(accepted) >= floor
        if ending is not None:
            awaited = {
                n for n in _OWNERS if round_.state_of(n) in {OwnerState.INVITED, OwnerState.JOINED}
            }
            unnamed = awaited if now < DEADLINE else set()
            excluded = round_.exclusions(now)
            assert {name for name, _ in excluded} == set(_OWNERS) - set(accepted) - unnamed
            assert all(reason for _, reason in excluded)
            assert not unnamed or ending is Ending.ABORT
            return
    assert round_.settle(DEADLINE) is not None
