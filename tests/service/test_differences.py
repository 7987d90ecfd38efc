"""Releases of one base, compared: no two of them together tell of fewer owners than the floor."""

from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest

from cairn.model.schema import Schema, TensorSpec
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.service.network import SECONDS, Ended, Job, Network, OpenRound, refused

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
RELEASED = aggregator_pb2.ROUND_STATE_RELEASED
ABORTED = aggregator_pb2.ROUND_STATE_ABORTED
SCHEMA = Schema.of([TensorSpec("w", "F32", (8,))])
UPDATE = bytes(32)
ABC = ("alice", "bob", "carol")


@pytest.fixture
def base(request: pytest.FixtureRequest) -> bytes:
    """A model that no other test starts from."""
    return sha256(request.node.nodeid.encode()).digest()


def job(network: Network, **changes: Any) -> Job:
    return network.job(schema=SCHEMA, **changes)


def run(job: Job, base: bytes, cohort: tuple[str, ...], *dropped: str) -> Ended:
    """A round of this cohort, in which some drop out after they joined."""
    return finish(job.open(cohort, base), *dropped)


def finish(opened: OpenRound, *dropped: str) -> Ended:
    for owner in opened.manifest.cohort:
        opened.join(owner)
    for owner in dropped:
        opened.decline(owner, pb.REASON_STOPPING)
    for owner in set(opened.manifest.cohort) - set(dropped):
        opened.push(owner, UPDATE)
    return opened.ends()


@pytest.mark.parametrize(
    "second",
    [
        ("alice", "bob"),
        (*ABC, "dave"),
        ("alice", "bob", "dave"),
        ("alice", "bob", "dave", "erin"),
        ("carol", "dave", "erin"),
    ],
)
def test_a_cohort_that_overlaps_with_another_of_an_earlier_release_is_refused_at_once(
    network: Network, base: bytes, second: tuple[str, ...]
) -> None:
    assert run(job(network), base, ABC).state == RELEASED
    again = job(network)
    with refused(PRECONDITION, "would tell of single owners", "COHORT_DIFFERENCE"):
        again.open(second, base)
    assert again.register().last_round == 0
    assert run(again, base, ABC).state == RELEASED  # the number is not burnt


def test_a_round_whose_drop_outs_make_it_differ_is_aborted_when_it_is_sealed(
    network: Network, base: bytes
) -> None:
    """Else a coordinator could run a job twice and have one owner stopped the second time."""
    assert run(job(network), base, ABC).state == RELEASED
    again = job(network)
    opened = again.open(ABC, base)
    releases = set((network.state / "releases").iterdir())
    ended = finish(opened, "carol")
    assert (ended.state, ended.reason) == (ABORTED, "COHORT_DIFFERENCE")
    with refused(PRECONDITION, "not released"):
        opened.collect()
    for who in ("alice", "coordinator"):
        request = aggregator_pb2.GetStatementRequest(manifest_digest=opened.digest)
        with refused(grpc.StatusCode.NOT_FOUND, "without a release", "ROUND_ENDED"):
            network.record(who).GetStatement(request, timeout=SECONDS)
    assert set((network.state / "releases").iterdir()) == releases
    state = again.register()
    assert (state.last_round, state.released) == (1, 0)
    assert not state.HasField("last_statement")
    assert run_next(again, base).state == RELEASED


def run_next(job: Job, base: bytes) -> Ended:
    return finish(job.open(ABC, base, number=2))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ABC, ABC),
        (("alice", "bob"), ("carol", "dave")),
        (("alice", "bob"), ("carol", "dave", "erin")),
    ],
)
def test_cohorts_that_are_equal_or_have_nobody_in_common_are_released(
    network: Network, base: bytes, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    assert run(job(network), base, first).state == RELEASED
    assert run(job(network), base, second).state == RELEASED


def test_another_weighting_of_the_same_owners_is_refused(network: Network, base: bytes) -> None:
    """Two weightings of the same updates are two equations."""
    assert run(job(network), base, ABC).state == RELEASED
    with refused(PRECONDITION, "otherwise", "COHORT_DIFFERENCE"):
        job(network, weighting=pb.WEIGHTING_EXAMPLES).open(ABC, base)


def test_another_coordinators_job_is_compared_as_well(network: Network, base: bytes) -> None:
    assert run(job(network), base, ABC).state == RELEASED
    with refused(PRECONDITION, reason="COHORT_DIFFERENCE"):
        job(network, coordinator="rival").open(("alice", "bob"), base)


def test_evaluations_are_compared_with_evaluations_and_trainings_with_trainings(
    network: Network, base: bytes
) -> None:
    first, second = job(network), job(network)
    released = run(first, base, ABC).payload
    assert run(second, base, ABC).payload == released  # so both evaluate the same model

    def evaluation(job: Job, cohort: tuple[str, ...]) -> OpenRound:
        return job.open(cohort, released, phase=pb.PHASE_EVALUATE)

    opened = evaluation(first, ("alice", "bob"))
    for owner in ("alice", "bob"):
        opened.join(owner)
        opened.push(owner, b"")
    assert opened.ends().state == RELEASED
    with refused(PRECONDITION, reason="COHORT_DIFFERENCE"):
        evaluation(second, ABC)
    assert finish(first.open(ABC, released, number=2)).state == RELEASED


def test_two_rounds_that_are_sealed_at_the_same_moment_cannot_both_pass(
    network: Network, base: bytes
) -> None:
    for attempt in range(8):
        start = sha256(base + bytes([attempt])).digest()
        rounds = [job(network).open(ABC, start) for _ in range(2)]
        for opened in rounds:
            for owner in ABC:
                opened.join(owner)
        rounds[1].decline("carol", pb.REASON_STOPPING)
        rounds[0].push("alice", UPDATE)
        rounds[0].push("carol", UPDATE)
        rounds[1].push("alice", UPDATE)
        with ThreadPoolExecutor(2) as pool:  # the last push of each seals it
            list(pool.map(lambda opened: opened.push("bob", UPDATE), rounds))
        ends = sorted((opened.ends() for opened in rounds), key=lambda ended: ended.state)
        assert [ended.state for ended in ends] == [RELEASED, ABORTED]
        assert ends[1].reason == "COHORT_DIFFERENCE"


def test_the_rule_outlasts_a_crash(own_network: Network, base: bytes) -> None:
    assert run(job(own_network), base, ABC).state == RELEASED
    own_network.restart(kill=True)
    with refused(PRECONDITION, reason="COHORT_DIFFERENCE"):
        job(own_network).open(("alice", "bob"), base)


def test_with_same_model_releases_of_other_bases_are_compared_too(
    tmp_path: Path, base: bytes
) -> None:
    network = Network(tmp_path, compare_releases="same_model")
    other = bytes(reversed(base))
    assert run(job(network), base, ABC).state == RELEASED
    with refused(PRECONDITION, reason="COHORT_DIFFERENCE"):
        job(network).open(("alice", "bob"), other)
    assert run(job(network), other, ABC).state == RELEASED
    unlike = network.job(schema=Schema.of([TensorSpec("v", "F32", (8,))]))
    assert run(unlike, other, ("alice", "bob")).state == RELEASED
    network.stop()
