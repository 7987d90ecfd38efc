"""What an owner allows, decided before any data is opened."""

from dataclasses import replace

import pytest

from cairn.errors import InvalidMessage
from cairn.messages import JobSpec, Manifest, digest_of, job_spec_to_bytes
from cairn.tensors import Schema, TensorSpec
from cairn.v1 import round_pb2 as pb
from owner_node.policy import Declined, Policy

JOB = JobSpec(
    federation="clinics",
    name="tumours",
    task="tumours",
    settings={"lr": 0.1},
    owners=("alice", "bob", "carol"),
    floor=3,
    rounds=5,
    weighting=pb.WEIGHTING_EQUAL,
    schema=Schema.of([TensorSpec("w", "F32", (2,))]),
    round_deadline_seconds=60,
)
MANIFEST = Manifest(
    federation="clinics",
    job="tumours",
    job_digest=digest_of(job_spec_to_bytes(JOB)),
    round=4,
    phase=pb.PHASE_TRAIN,
    cohort=("alice", "bob", "carol"),
    base_digest=bytes(32),
    previous_release_digest=bytes(32),
    weighting=pb.WEIGHTING_EQUAL,
    floor=3,
    deadline_unix_ms=0,
    lease_seconds=15,
    nonce=bytes(32),
    ledger_head=bytes(32),
)
POLICY = Policy("clinics", "bob", floor=3, tasks={"tumours": {"lr": (0.01, 0.5)}})
NEVER = (0, 0)


def check(manifest: Manifest = MANIFEST, job: JobSpec = JOB, last: tuple[int, int] = NEVER) -> None:
    """Check an invitation whose manifest was signed for this very job."""
    body = job_spec_to_bytes(job)
    POLICY.check(replace(manifest, job_digest=digest_of(body)), job, body, last)


def test_an_invitation_within_the_owners_rules_is_taken() -> None:
    check()


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (replace(JOB, task="other"), pb.REASON_UNKNOWN_TASK),
        (replace(JOB, settings={"lr": 0.6}), pb.REASON_SETTING_REFUSED),
        (replace(JOB, settings={"lr": 0.001}), pb.REASON_SETTING_REFUSED),
        (replace(JOB, settings={"lr": float("nan")}), pb.REASON_SETTING_REFUSED),
        (replace(JOB, settings={"lr": 0.1, "steps": 1}), pb.REASON_SETTING_REFUSED),
    ],
)
def test_a_job_outside_the_owners_rules_is_declined(job: JobSpec, reason: "pb.Reason") -> None:
    with pytest.raises(Declined) as decline:
        check(job=job)
    assert decline.value.reason == reason


@pytest.mark.parametrize("value", [0.01, 0.1, 0.5])
def test_the_ends_of_a_range_are_within_it(value: float) -> None:
    check(job=replace(JOB, settings={"lr": value}))


def test_a_floor_below_the_owners_own_is_declined() -> None:
    with pytest.raises(Declined) as decline:
        check(replace(MANIFEST, floor=2))
    assert decline.value.reason == pb.REASON_FLOOR_TOO_LOW


def test_a_cohort_smaller_than_its_own_floor_is_declined() -> None:
    with pytest.raises(Declined) as decline:
        check(replace(MANIFEST, cohort=("alice", "bob")))
    assert decline.value.reason == pb.REASON_FLOOR_TOO_LOW


@pytest.mark.parametrize("last", [(5, pb.PHASE_TRAIN), (4, pb.PHASE_EVALUATE)])
def test_a_round_older_than_the_last_is_declined(last: tuple[int, int]) -> None:
    with pytest.raises(Declined) as decline:
        check(last=last)
    assert decline.value.reason == pb.REASON_STALE_ROUND


def test_the_same_round_may_be_asked_for_again() -> None:
    check(last=(4, pb.PHASE_TRAIN))


def test_a_job_that_the_aggregator_did_not_sign_for_is_refused() -> None:
    other = replace(JOB, settings={"lr": 0.2})
    with pytest.raises(InvalidMessage):
        POLICY.check(MANIFEST, other, job_spec_to_bytes(other), NEVER)


@pytest.mark.parametrize(
    "manifest",
    [
        replace(MANIFEST, federation="elsewhere"),
        replace(MANIFEST, cohort=("alice", "carol", "dora")),
        replace(MANIFEST, job="another"),
    ],
)
def test_an_invitation_that_is_not_for_this_owner_is_refused(manifest: Manifest) -> None:
    with pytest.raises(InvalidMessage):
        check(manifest)
