"""A coordinator that wants an average of too few: what it asks of a real aggregator, and what it gets.

Its calls are made by hand on the generated stubs. Which identity may call which method at all is
enumerated in tests/service/test_access.py.
"""

import dataclasses
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest

from cairn.protocol.messages import job_spec_to_bytes
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.chaos.puppet import LEASE_SECONDS, Puppet
from tests.hostile.attacks import (
    ABORTED,
    COHORT,
    DENIED,
    INVALID,
    PRECONDITION,
    NewCaller,
    new_job,
    push_one_hots,
    register,
)
from tests.hostile.checks import ONE_HOT, check_one_hot, refuses
from tests.service.network import SECONDS, Job, Network


@pytest.fixture
def who(new_caller: NewCaller) -> str:
    """A hostile coordinator of the test's own."""
    return new_caller()


@pytest.mark.parametrize("cohort", [[], ["alice"], ["alice", "bob"]])
def test_a_round_with_a_cohort_below_the_floor_is_not_opened(
    network: Network, who: str, cohort: list[str]
) -> None:
    job = new_job(network, who)
    with refuses(network, f"coordinator/{who}", "OpenRound", INVALID, "COHORT_TOO_SMALL"):
        job.open(cohort)


def test_a_cohort_one_below_a_jobs_higher_floor_is_not_opened(network: Network, who: str) -> None:
    job = new_job(network, who, floor=4)
    with refuses(network, f"coordinator/{who}", "OpenRound", INVALID, "COHORT_TOO_SMALL"):
        job.open(COHORT)


@pytest.mark.parametrize("cohort", [["alice", "alice", "alice"], ["carol", "bob", "alice"]])
def test_one_owner_named_three_times_is_no_cohort_of_three(
    network: Network, who: str, cohort: list[str]
) -> None:
    job = new_job(network, who)
    with refuses(network, f"coordinator/{who}", "OpenRound", INVALID, "MALFORMED"):
        job.open(cohort)


@pytest.mark.parametrize("floor", [0, 1])
def test_a_job_with_a_floor_of_one_is_not_registered(
    network: Network, who: str, floor: int
) -> None:
    spec = dataclasses.replace(new_job(network, who).spec, name=f"floor-{floor}", floor=floor)
    with refuses(network, f"coordinator/{who}", "RegisterJob", INVALID, "COHORT_TOO_SMALL"):
        register(network, who, job_spec_to_bytes(spec))


def test_a_job_of_two_owners_is_not_registered_where_the_aggregators_floor_is_three(
    network: Network, who: str
) -> None:
    spec = new_job(network, who).spec
    two = dataclasses.replace(spec, name="pair", floor=2, owners=("alice", "bob"))
    with refuses(network, f"coordinator/{who}", "RegisterJob", INVALID, "COHORT_TOO_SMALL"):
        register(network, who, job_spec_to_bytes(two))


def test_a_jobs_own_floor_cannot_lower_the_aggregators(network: Network, who: str) -> None:
    job = new_job(network, who, floor=2)
    assert job.register().floor == 3
    with refuses(network, f"coordinator/{who}", "OpenRound", INVALID, "COHORT_TOO_SMALL"):
        job.open(["alice", "bob"])
    assert job.open(COHORT).manifest.floor == 3


def test_where_all_but_one_drop_out_nothing_is_released_and_the_number_is_burnt(
    network: Network, who: str
) -> None:
    job = new_job(network, who)
    opened = job.open(["alice", "bob", "carol", "dave"])
    push_one_hots(opened, ["alice"])
    for owner in ("bob", "carol"):
        opened.decline(owner, pb.REASON_STOPPING)
    ended = opened.ends()
    assert (ended.state, ended.reason, ended.payload) == (ABORTED, "BELOW_FLOOR", b"")
    with refuses(network, f"coordinator/{who}", "CollectRelease", PRECONDITION, "OUT_OF_TURN"):
        opened.collect()
    with refuses(network, f"coordinator/{who}", "OpenRound", PRECONDITION, "CONFLICT"):
        job.open(COHORT, number=1)
    assert not _release_file(network, opened.digest)


def test_at_the_deadline_two_updates_of_a_cohort_of_four_are_not_released(tmp_path: Path) -> None:
    network, who = Puppet(tmp_path, floor=3), "coordinator"
    job = new_job(network, who, deadline=LEASE_SECONDS - 1)
    opened = job.open(["alice", "bob", "carol", "dave"])
    push_one_hots(opened, ["alice", "bob"])
    network.advance(LEASE_SECONDS - 1)
    ended = opened.ends()
    assert (ended.state, ended.reason, ended.payload) == (ABORTED, "BELOW_FLOOR", b"")
    with refuses(network, f"coordinator/{who}", "CollectRelease", PRECONDITION, "OUT_OF_TURN"):
        opened.collect()
    assert not _release_file(network, opened.digest)
    network.stop()


def _release_file(network: Network, manifest_digest: bytes) -> bool:
    return (network.state / f"releases/{manifest_digest.hex()}.safetensors").exists()


def test_a_certified_owner_that_is_not_on_the_roster_cannot_be_in_a_job(
    network: Network, who: str
) -> None:
    spec = dataclasses.replace(
        new_job(network, who).spec, name="sybils", owners=("alice", "bob", "mallory")
    )
    with refuses(network, f"coordinator/{who}", "RegisterJob", INVALID, "UNKNOWN_OWNER"):
        register(network, who, job_spec_to_bytes(spec))


@pytest.mark.parametrize("stranger", ["mallory", "zoe", "coordinator"])
def test_a_sybil_in_the_cohort_is_refused(network: Network, who: str, stranger: str) -> None:
    job = new_job(network, who)
    cohort = sorted(["alice", "bob", stranger])
    with refuses(network, f"coordinator/{who}", "OpenRound", INVALID, "UNKNOWN_OWNER"):
        job.open(cohort)


def test_an_owner_of_the_roster_that_the_job_does_not_list_is_refused_in_its_cohort(
    network: Network, who: str
) -> None:
    job = new_job(network, who, owners=COHORT)
    with refuses(network, f"coordinator/{who}", "OpenRound", INVALID, "UNKNOWN_OWNER"):
        job.open(["alice", "bob", "carol", "dave"])


def test_a_sybil_itself_is_refused_at_the_owners_door(network: Network, who: str) -> None:
    opened = new_job(network, who).open(COHORT)
    with refuses(network, "owner/mallory", "JoinRound", DENIED, "UNKNOWN_OWNER"):
        opened.join("mallory")
    with refuses(network, "owner/mallory", "SubmitUpdate", DENIED, "UNKNOWN_OWNER"):
        opened.push("mallory", bytes(ONE_HOT.total_bytes))


@pytest.mark.parametrize(
    "cohort", [["alice", "dave", "erin"], ["alice", "bob", "carol", "dave"], ["alice", "bob"]]
)
def test_the_companions_of_an_owner_cannot_be_exchanged_after_the_round_was_opened(
    network: Network, who: str, cohort: list[str]
) -> None:
    job = new_job(network, who)
    opened = job.open(COHORT)
    push_one_hots(opened, ["alice"])
    with refuses(network, f"coordinator/{who}", "OpenRound", PRECONDITION, "CONFLICT"):
        job.open(cohort)
    push_one_hots(opened, ["bob", "carol"])
    check_one_hot(opened.ends(), COHORT)


def test_a_round_cannot_be_aborted_by_another_coordinator(
    network: Network, who: str, new_caller: NewCaller
) -> None:
    opened = new_job(network, who).open(COHORT)
    other = new_caller()
    request = aggregator_pb2.AbortRoundRequest(manifest_digest=opened.digest, epoch=1)
    with refuses(network, f"coordinator/{other}", "AbortRound", DENIED, "NOT_ALLOWED"):
        network.release(other).AbortRound(request, timeout=SECONDS)
    push_one_hots(opened, COHORT)
    check_one_hot(opened.ends(), COHORT)


def test_one_round_has_one_release_however_often_and_however_it_is_asked_for(
    network: Network, who: str
) -> None:
    opened = new_job(network, who).open(COHORT)
    push_one_hots(opened, COHORT)
    check_one_hot(opened.ends(), COHORT)
    request = aggregator_pb2.CollectReleaseRequest(manifest_digest=opened.digest, epoch=1)
    plain = request.SerializeToString()
    wanted = _collect(network, who, plain)
    assert len(wanted) == 2
    # Unknown fields 2 to 15, as a coordinator that hopes for "exclude" or "weights" would send them.
    for field in range(2, 16):
        assert _collect(network, who, plain + bytes([field << 3 | 2, 5]) + b"alice") == wanted
    network.restart(kill=True)
    assert _collect(network, who, plain) == wanted


def _collect(network: Network, who: str, request: bytes) -> list[bytes]:
    """The exact messages of a release."""
    channel = network.channel(who, network.release_at)
    call: Any = channel.unary_stream("/cairn.v1.ReleaseService/CollectRelease")
    parts: list[bytes] = list(call(request, timeout=SECONDS))
    return parts


def test_a_release_that_is_broken_off_is_the_same_when_it_is_read_again(
    network: Network, who: str
) -> None:
    opened = new_job(network, who).open(COHORT)
    push_one_hots(opened, COHORT)
    first = opened.ends()
    request = aggregator_pb2.CollectReleaseRequest(manifest_digest=opened.digest, epoch=1)
    call = opened.job.coordinator.CollectRelease(request, timeout=SECONDS)
    next(call)
    call.cancel()
    signed, payload = opened.collect()
    assert payload == first.payload
    assert pb.ReleaseStatement.FromString(signed.body) == first.statement


def test_before_its_end_a_round_gives_the_same_refusal_whoever_has_pushed(
    network: Network, who: str
) -> None:
    opened = new_job(network, who).open(COHORT)
    answers = [_refusal(opened.job, opened.digest)]
    for owner in ("alice", "bob"):
        push_one_hots(opened, [owner])
        answers.append(_refusal(opened.job, opened.digest))
    opened.abort()
    answers.append(_refusal(opened.job, opened.digest))
    assert len(set(answers)) == 1
    assert answers[0][0] is PRECONDITION
    with refuses(network, f"coordinator/{who}", "CollectRelease", PRECONDITION, "OUT_OF_TURN"):
        opened.collect()
    with refuses(
        network,
        f"coordinator/{who}",
        "GetStatement",
        grpc.StatusCode.NOT_FOUND,
        "ROUND_ENDED",
    ):
        _statement(network, who, opened.digest)


def _refusal(job: Job, manifest_digest: bytes) -> tuple[object, ...]:
    """All that comes back when a release is asked for too early."""
    request = aggregator_pb2.CollectReleaseRequest(manifest_digest=manifest_digest, epoch=1)
    call = job.coordinator.CollectRelease(request, timeout=SECONDS)
    with pytest.raises(grpc.RpcError):
        next(call)
    trailing = tuple((key, value) for key, value in call.trailing_metadata())
    return call.code(), call.details(), tuple(call.initial_metadata()), trailing


def _statement(network: Network, who: str, manifest_digest: bytes) -> None:
    request = aggregator_pb2.GetStatementRequest(manifest_digest=manifest_digest)
    channel = network.channel(who, network.release_at)
    call: Any = channel.unary_unary("/cairn.v1.RecordService/GetStatement")
    call(request.SerializeToString(), timeout=SECONDS)


def test_each_receipt_is_one_commitment_of_the_statement_and_there_are_no_others(
    network: Network, who: str
) -> None:
    opened = new_job(network, who).open(["alice", "bob", "carol", "dave"])
    push_one_hots(opened, ["alice", "carol", "dave"])
    opened.decline("bob", pb.REASON_JOB_REFUSED)
    ended = opened.ends()
    check_one_hot(ended, ["alice", "carol", "dave"])
    bodies = [opened.receipt(owner).body for owner in ("alice", "carol", "dave")]
    assert sorted(sha256(body).digest() for body in bodies) == list(ended.statement.commitments)
    assert ended.exclusions == {"bob": "JOB_REFUSED"}
