"""A coordinator that is curious about one owner, or sends bytes in the hope that somebody runs them."""

import dataclasses
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from cairn.protocol.messages import job_spec_to_bytes
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.hostile.attacks import (
    COHORT,
    DENIED,
    INVALID,
    PRECONDITION,
    NewCaller,
    new_job,
    push,
    push_one_hots,
    register,
)
from tests.hostile.checks import check_one_hot, one_hot, refuses, written_refusals
from tests.service.network import OWNERS, Network


@pytest.fixture
def who(new_caller: NewCaller) -> str:
    return new_caller()


def test_while_a_round_is_open_its_coordinator_is_told_that_and_nothing_else(
    network: Network, who: str
) -> None:
    opened = new_job(network, who).open(OWNERS)
    push(opened, {"alice": one_hot("alice")})
    opened.decline("bob", pb.REASON_TASK_FAILED)
    only_open = aggregator_pb2.WatchRoundResponse(state=aggregator_pb2.ROUND_STATE_OPEN)
    watching = opened.watch()
    assert next(watching) == only_open
    watching.cancel()
    push_one_hots(opened, ["carol", "dave", "erin"])
    check_one_hot(opened.ends(), ["alice", "carol", "dave", "erin"])


def test_metrics_reach_the_coordinator_as_averages_over_all_who_are_counted(
    network: Network, who: str
) -> None:
    opened = new_job(network, who).open(COHORT)
    for owner, loss in zip(COHORT, (1.0, 2.0, 6.0), strict=True):
        opened.join(owner)
        own = {f"loss of {owner}": loss}
        opened.push(owner, one_hot(owner), metrics={"loss": loss} | own)
    assert dict(opened.ends().statement.metrics) == {"loss": 3.0}


def test_a_jobs_bounds_on_examples_do_not_measure_one_owner(network: Network, who: str) -> None:
    """By halving the bounds from job to job a coordinator would find the number itself."""
    told = []
    for examples in (10, 100):
        job = new_job(network, who, examples=(50, 1000))
        opened = job.open(["alice", "bob", "carol", "dave"])
        opened.join("alice")
        with suppress(grpc.RpcError):
            opened.push("alice", one_hot("alice"), examples=examples)
        for owner in ("bob", "carol", "dave"):
            opened.join(owner)
            opened.push(owner, one_hot(owner), examples=100)
        ended = opened.ends()
        told.append((ended.state, ended.exclusions, ended.statement.contributors))
    assert told[0] == told[1]


def test_a_job_in_which_one_owner_outweighs_all_others_is_refused(
    network: Network, who: str
) -> None:
    spec = dataclasses.replace(
        new_job(network, who).spec,
        name="outweighed",
        weighting=pb.WEIGHTING_EXAMPLES,
        min_examples=1,
        max_examples=1_000_000,
    )
    with refuses(network, f"coordinator/{who}", "RegisterJob", INVALID, "EXAMPLES_REFUSED"):
        register(network, who, job_spec_to_bytes(spec))


@pytest.mark.parametrize(
    "field", ["aggregation.rule", "aggregation.optimizer", "weighting", "chain"]
)
def test_a_rule_that_the_aggregator_does_not_ship_is_refused(
    network: Network, who: str, field: str
) -> None:
    spec = pb.JobSpec.FromString(new_job(network, who).body)
    part, _, name = field.rpartition(".")
    spec.name = f"unknown-{name}"
    for value in (0, 9):
        setattr(getattr(spec, part) if part else spec, name, value)
        with refuses(network, f"coordinator/{who}", "RegisterJob", INVALID, "MALFORMED"):
            register(network, who, spec.SerializeToString())


class _Runs:
    """Where it is unpickled, a file appears."""

    def __init__(self, sentinel: Path) -> None:
        self._sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._sentinel,)


def test_what_would_run_if_it_were_unpickled_is_not_run(
    network: Network, who: str, tmp_path: Path
) -> None:
    sentinel = tmp_path / "was-run"
    pickled = pickle.dumps(_Runs(sentinel))
    pickle.loads(pickled)  # noqa: S301 - it must be able to fail
    assert sentinel.exists()
    sentinel.unlink()
    with refuses(network, f"coordinator/{who}", "RegisterJob", INVALID, "MALFORMED"):
        register(network, who, pickled)
    job = new_job(network, who)
    for field in ("name", "task", "federation"):
        spec = pb.JobSpec.FromString(job.body)
        setattr(spec, field, f"!!python/object/apply:pathlib.Path.touch ['{sentinel}']")
        with refuses(network, f"coordinator/{who}", "RegisterJob", INVALID, "MALFORMED"):
            register(network, who, spec.SerializeToString())
    assert not sentinel.exists()


def test_a_task_is_a_name_to_the_aggregator_and_is_not_imported(network: Network, who: str) -> None:
    job = new_job(network, who)
    renamed = dataclasses.replace(job.spec, name="by-path", task="antigravity")
    register(network, who, job_spec_to_bytes(renamed))
    maps = Path(f"/proc/{network.node.pid}/maps").read_text()
    assert "torch" not in maps
    for path in ("os.system('true')", "../task.py", "tests.hostile:checks"):
        spec = pb.JobSpec.FromString(job.body)
        spec.task = path
        with refuses(network, f"coordinator/{who}", "RegisterJob", INVALID, "MALFORMED"):
            register(network, who, spec.SerializeToString())


def test_a_coordinator_cannot_push_or_answer_for_an_owner(network: Network, who: str) -> None:
    opened = new_job(network, who).open(COHORT)
    with refuses(network, f"coordinator/{who}", "JoinRound", DENIED, "NOT_ALLOWED"):
        opened.join(who)
    with refuses(network, f"coordinator/{who}", "JoinRound", DENIED, "NOT_ALLOWED"):
        opened.decline(who, pb.REASON_STOPPING)
    with refuses(network, f"coordinator/{who}", "SubmitUpdate", DENIED, "NOT_ALLOWED"):
        opened.push(who, one_hot("alice"))
    push_one_hots(opened, COHORT)
    check_one_hot(opened.ends(), COHORT)
    with refuses(network, f"coordinator/{who}", "GetReceipt", DENIED, "NOT_ALLOWED"):
        opened.receipt(who)


@pytest.mark.parametrize(
    ("impostor", "written"),
    [("neighbour", "spiffe://elsewhere/owner/alice"), ("nameless", "unknown")],
)
def test_a_certificate_that_looks_like_an_owners_is_none(
    network: Network, who: str, impostor: str, written: str
) -> None:
    opened = new_job(network, who).open(COHORT)
    for attempt in (
        lambda: opened.join(impostor),
        lambda: opened.push(impostor, one_hot("alice")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            attempt()
        failed: Any = caught.value
        assert failed.code() is DENIED
        assert dict(failed.trailing_metadata())["cairn-reason"] == "NOT_ALLOWED"
    expected = {(written, method, "NOT_ALLOWED") for method in ("JoinRound", "SubmitUpdate")}
    assert expected <= written_refusals(network.state)
    push_one_hots(opened, COHORT)
    check_one_hot(opened.ends(), COHORT)


def test_an_old_job_cannot_take_the_place_of_the_present_one(network: Network, who: str) -> None:
    job = new_job(network, who, rounds=1)
    opened = job.open(COHORT)
    push_one_hots(opened, COHORT)
    check_one_hot(opened.ends(), COHORT)
    changed = job_spec_to_bytes(dataclasses.replace(job.spec, floor=4))
    conflict = grpc.StatusCode.ALREADY_EXISTS
    for _ in range(2):
        with refuses(network, f"coordinator/{who}", "RegisterJob", conflict, "CONFLICT"):
            register(network, who, changed)
        assert register(network, who, job.body).last_round == 1
        with refuses(network, f"coordinator/{who}", "OpenRound", PRECONDITION, "CONFLICT"):
            job.open(["alice", "bob", "dave"])
        network.restart(kill=True)
        job.coordinator = network.release(who)


def test_a_job_of_an_owner_who_has_left_the_roster_opens_no_round_with_it(
    network: Network, who: str
) -> None:
    job = new_job(network, who)
    config = network.directory / "aggregator.toml"
    text = config.read_text()
    assert '"erin"' in text
    config.write_text(text.replace(', "erin"', ""))
    try:
        with refuses(network, f"coordinator/{who}", "OpenRound", INVALID, "UNKNOWN_OWNER"):
            job.open(["alice", "bob", "erin"])
        assert register(network, who, job.body).last_round == 0  # it may go on without her
        another = job_spec_to_bytes(dataclasses.replace(job.spec, name=f"{job.spec.name}-again"))
        with refuses(network, f"coordinator/{who}", "RegisterJob", INVALID, "UNKNOWN_OWNER"):
            register(network, who, another)
    finally:
        config.write_text(text)
    assert job.open(["alice", "bob", "erin"]).manifest.round == 1
