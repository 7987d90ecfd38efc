"""What the aggregator allows of jobs and rounds."""

from dataclasses import replace

import pytest

from aggregator_node.policy import Opening, Policy, Progress, check_opening
from cairn.errors import CairnError, InvalidMessage, WrongState
from cairn.messages import JobSpec
from cairn.tensors import Schema, TensorSpec
from cairn.v1 import round_pb2 as pb

OWNERS = ("alice", "bob", "carol", "dora")
JOB = JobSpec(
    federation="clinics",
    name="tumours",
    task="tumours",
    settings={},
    owners=OWNERS,
    floor=2,
    rounds=5,
    weighting=pb.WEIGHTING_EQUAL,
    schema=Schema.of([TensorSpec("w", "F32", (2,))]),
    round_deadline_seconds=60,
)
POLICY = Policy("clinics", frozenset(OWNERS), floor=3)
BASE, RELEASE = bytes(range(32)), bytes(range(32, 64))
FIRST = Opening(1, pb.PHASE_TRAIN, ("alice", "bob", "carol"), BASE)


def test_the_floor_is_the_larger_of_the_jobs_and_the_aggregators() -> None:
    assert POLICY.floor_of(JOB) == 3
    assert POLICY.floor_of(replace(JOB, floor=4)) == 4


def test_a_job_of_another_federation_is_refused_by_name() -> None:
    with pytest.raises(InvalidMessage, match=r"elsewhere.*clinics"):
        POLICY.check_job(replace(JOB, federation="elsewhere"))


def test_an_owner_outside_the_roster_is_refused_by_name() -> None:
    with pytest.raises(InvalidMessage, match="mallory"):
        POLICY.check_job(replace(JOB, owners=("alice", "bob", "mallory")))


def test_a_job_that_could_never_reach_the_floor_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="2 owners, the floor is 3"):
        POLICY.check_job(replace(JOB, owners=("alice", "bob")))


def test_the_first_round_may_start_from_any_base() -> None:
    check_opening(POLICY, JOB, Progress(), FIRST)


@pytest.mark.parametrize(
    ("opening", "error", "words"),
    [
        (replace(FIRST, cohort=("alice", "bob")), InvalidMessage, "below the floor of 3"),
        (replace(FIRST, cohort=("alice", "bob", "mallory")), InvalidMessage, "mallory"),
        (replace(FIRST, round=2), WrongState, "out of turn"),
        (replace(FIRST, round=0), WrongState, "out of turn"),
        (replace(FIRST, phase=pb.PHASE_EVALUATE), WrongState, "cannot be evaluated"),
    ],
)
def test_a_first_round_is_refused_when(
    opening: Opening, error: type[CairnError], words: str
) -> None:
    with pytest.raises(error, match=words):
        check_opening(POLICY, JOB, Progress(), opening)


AFTER_ONE = Progress(opened=1, released=1, release_round=1, release_digest=RELEASE)


def test_the_next_round_starts_from_the_last_release() -> None:
    check_opening(POLICY, JOB, AFTER_ONE, replace(FIRST, round=2, base_digest=RELEASE))


def test_a_base_that_is_not_the_last_release_breaks_the_chain() -> None:
    with pytest.raises(WrongState, match="not the last release"):
        check_opening(POLICY, JOB, AFTER_ONE, replace(FIRST, round=2))


def test_a_burnt_round_number_is_never_opened_again() -> None:
    with pytest.raises(WrongState, match="next of tumours is 2"):
        check_opening(POLICY, JOB, Progress(opened=1), FIRST)


def test_no_round_is_opened_after_the_last_release_of_the_job() -> None:
    done = Progress(opened=5, released=5, release_round=5, release_digest=RELEASE)
    with pytest.raises(WrongState, match="all 5 rounds"):
        check_opening(POLICY, JOB, done, replace(FIRST, round=6, base_digest=RELEASE))


def test_the_evaluation_of_a_release_is_opened_once() -> None:
    evaluation = Opening(1, pb.PHASE_EVALUATE, FIRST.cohort, RELEASE)
    check_opening(POLICY, JOB, AFTER_ONE, evaluation)
    with pytest.raises(WrongState, match="opened before"):
        check_opening(POLICY, JOB, replace(AFTER_ONE, evaluated=1), evaluation)


def test_an_evaluation_of_anything_but_the_last_release_is_refused() -> None:
    with pytest.raises(WrongState, match="not the last release"):
        check_opening(POLICY, JOB, AFTER_ONE, Opening(1, pb.PHASE_EVALUATE, FIRST.cohort, BASE))
