"""A coordinator that mixes the groups of its job, so that averages of many rounds tell of few owners."""

import dataclasses
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from cairn.protocol.messages import job_spec_to_bytes
from cairn.v1 import round_pb2 as pb
from tests.hostile.attacks import INVALID, NewCaller, new_job, push, push_one_hots, register
from tests.hostile.audit import check_books
from tests.hostile.checks import check_one_hot, one_hot, refuses
from tests.hostile.stage import Stage, manifest, signed
from tests.service.network import OWNERS, Job, Network

GROUPS = (("alice", "carol"), ("bob", "dave", "erin"))
WHO = "coordinator/coordinator"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A floor of two."""
    network = Network(tmp_path_factory.mktemp("groups"), floor=2, lease_seconds=600)
    yield network
    network.stop()
    check_books(network.state, network.key)


def divided(network: Network) -> Job:
    return new_job(network, "coordinator", floor=2, groups=GROUPS)


@pytest.mark.parametrize(
    "cohort", [OWNERS, ("alice", "bob"), ("alice", "bob", "dave", "erin"), ("carol", "erin")]
)
def test_a_cohort_that_mixes_groups_is_not_opened(pairs: Network, cohort: tuple[str, ...]) -> None:
    job = divided(pairs)
    with refuses(pairs, WHO, "OpenRound", INVALID, "MIXED_GROUPS"):
        job.open(cohort)
    opened = job.open(GROUPS[1])
    push_one_hots(opened, GROUPS[1])
    ended = opened.ends()
    check_one_hot(ended, GROUPS[1])
    with refuses(pairs, WHO, "OpenRound", INVALID, "MIXED_GROUPS"):
        job.open(cohort, ended.payload, number=2)


def test_an_evaluation_that_mixes_groups_is_not_opened(pairs: Network) -> None:
    job = divided(pairs)
    opened = job.open(GROUPS[0])
    push_one_hots(opened, GROUPS[0])
    model = opened.ends().payload
    with refuses(pairs, WHO, "OpenRound", INVALID, "MIXED_GROUPS"):
        job.open(OWNERS, model, phase=pb.PHASE_EVALUATE)
    evaluation = job.open(GROUPS[1], model, phase=pb.PHASE_EVALUATE)  # another group may
    push(evaluation, dict.fromkeys(GROUPS[1], b""))
    assert evaluation.ends().reason == "UNSPECIFIED"


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ((("alice",), ("bob", "carol", "dave", "erin")), "COHORT_TOO_SMALL"),
        ((("alice", "carol"), ("alice", "bob", "dave", "erin")), "MALFORMED"),
        ((("alice", "carol"), ("bob", "dave")), "MALFORMED"),
        ((("alice", "carol"), ("bob", "dave", "erin", "mallory")), "MALFORMED"),
        ((("bob", "dave", "erin"), ("alice", "carol")), "MALFORMED"),
        ((OWNERS,), "MALFORMED"),
    ],
    ids=["a group of one", "in two", "in none", "a stranger", "not sorted", "all in one"],
)
def test_a_job_whose_groups_are_none_is_not_registered(
    pairs: Network, groups: tuple[tuple[str, ...], ...], reason: str
) -> None:
    spec = dataclasses.replace(divided(pairs).spec, name="crooked", groups=groups)
    with refuses(pairs, WHO, "RegisterJob", INVALID, reason):
        register(pairs, "coordinator", job_spec_to_bytes(spec))


def test_a_job_with_a_group_below_the_aggregators_floor_is_not_registered(
    network: Network, new_caller: NewCaller
) -> None:
    """The aggregator's floor is three, and the job says two."""
    who = new_caller()
    spec = dataclasses.replace(new_job(network, who).spec, name="thin", floor=2, groups=GROUPS)
    with refuses(network, f"coordinator/{who}", "RegisterJob", INVALID, "COHORT_TOO_SMALL"):
        register(network, who, job_spec_to_bytes(spec))


def test_the_groups_of_a_job_cannot_be_changed_under_way(pairs: Network) -> None:
    job = divided(pairs)
    others = (("alice", "bob", "carol"), ("dave", "erin"))
    spec = dataclasses.replace(job.spec, groups=others)
    with refuses(pairs, WHO, "RegisterJob", grpc.StatusCode.ALREADY_EXISTS, "CONFLICT"):
        register(pairs, "coordinator", job_spec_to_bytes(spec))


def test_over_many_rounds_of_a_job_whole_groups_tell_of_nobody_alone(pairs: Network) -> None:
    """Other cohorts, which would tell, are asked for in every round; what was released is solved."""
    job = new_job(pairs, "coordinator", floor=2, groups=GROUPS, rounds=6)
    base, weights = job.first_base, []
    for number in range(1, 7):
        group = GROUPS[number % 2]
        for other in (OWNERS, ("alice", "bob"), ("carol", "dave", "erin")):
            with refuses(pairs, WHO, "OpenRound", INVALID, "MIXED_GROUPS"):
                job.open(other, base, number=number)
        opened = job.open(group, base, number=number)
        push(opened, {owner: one_hot(owner) for owner in group})
        base = opened.ends().payload
        weights.append(np.frombuffer(base, "<f4"))
    assert np.linalg.matrix_rank(np.array(weights)) == len(GROUPS)
    for alone in np.eye(len(OWNERS)):
        assert np.linalg.matrix_rank(np.array([*weights, alone])) == len(GROUPS) + 1


def test_by_default_a_cohort_may_lack_an_owner_of_its_group(pairs: Network) -> None:
    """Stated and not promised, as without groups: see compare_releases in tests/service/test_groups.py."""
    job = divided(pairs)
    opened = job.open(GROUPS[1])
    push_one_hots(opened, GROUPS[1])
    base = opened.ends().payload
    assert job.open(GROUPS[1][1:], base, number=2).manifest.cohort == GROUPS[1][1:]


def test_an_owner_declines_a_signed_round_that_mixes_groups(stage: Stage) -> None:
    """Under the aggregator's own key: an aggregator that was bypassed."""
    job = stage.job()
    spec = pb.JobSpec.FromString(job.body)
    spec.owners[:] = sorted((*OWNERS, "frank"))
    for group in (("alice", "bob", "erin"), ("carol", "dave", "frank")):
        spec.groups.add(owners=group)
    job.body = spec.SerializeToString(deterministic=True)
    fetched, joined = len(stage.coordinator.fetched), len(stage.entries("joined"))
    for phase in (pb.PHASE_TRAIN, pb.PHASE_EVALUATE):
        mixed = manifest(stage, job, cohort=("alice", "bob", "carol", "dave"), phase=phase)
        stage.declines(signed(stage, mixed), job.body, "MIXED_GROUPS")
    assert len(stage.coordinator.fetched) == fetched
    assert len(stage.entries("joined")) == joined
