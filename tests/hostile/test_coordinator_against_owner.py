"""Invitations that no owner must follow, most of them under the aggregator's real key: a bypassed aggregator.

The owner is a real process. It must answer from its own file, before it fetches a model or opens its data.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cairn.protocol.aggregation import aggregation_to_pb
from cairn.protocol.statements import STATEMENT, sign
from cairn.v1 import round_pb2 as pb
from tests.hostile.checks import bounded, opened_files
from tests.hostile.stage import COHORT, Stage, fresh_base, manifest, signed
from tests.unit.owner_node.test_policy import ADAM


@pytest.fixture
def untouched(stage: Stage) -> Iterator[Stage]:
    """The stage; after the test alice must have fetched and opened nothing, and be no larger."""
    fetched, joined = len(stage.coordinator.fetched), len(stage.entries("joined"))
    with opened_files(stage.data) as opened, bounded(stage.alice.pid):
        yield stage
        assert opened() == []
    assert len(stage.coordinator.fetched) == fetched
    assert len(stage.entries("joined")) == joined


@pytest.mark.parametrize(
    "changes",
    [
        {"cohort": ("alice", "bob"), "floor": 2},
        {"floor": 2},
        {"cohort": ("alice", "bob")},
    ],
)
def test_an_owner_declines_a_signed_round_below_its_own_floor(
    untouched: Stage, changes: dict[str, Any]
) -> None:
    job = untouched.job()
    untouched.declines(
        signed(untouched, manifest(untouched, job, **changes)), job.body, "FLOOR_TOO_LOW"
    )


@pytest.mark.parametrize("share", [0.500001, 1.0, 0.0, -0.25, float("nan"), float("inf")])
def test_an_owner_refuses_a_signed_round_in_which_one_update_could_decide(
    untouched: Stage, share: float
) -> None:
    job = untouched.job()
    lopsided = manifest(untouched, job, largest_share=share)
    untouched.refuses(signed(untouched, lopsided), job.body, "above 0 and at most 0.5")


def test_an_owner_refuses_a_signed_round_of_itself_alone(untouched: Stage) -> None:
    job = untouched.job()
    alone = manifest(untouched, job, cohort=("alice",), floor=1)
    untouched.refuses(signed(untouched, alone), job.body, "an average of one")


def test_an_owner_declines_a_cohort_of_those_it_does_not_trust(untouched: Stage) -> None:
    job = untouched.job()
    cohort = ("alice", "bob", "dave", "erin")
    untouched.declines(
        signed(untouched, manifest(untouched, job, cohort=cohort)), job.body, "UNTRUSTED_COHORT"
    )


def test_an_owner_refuses_a_manifest_under_another_key(untouched: Stage) -> None:
    job = untouched.job()
    forged = signed(untouched, manifest(untouched, job), Ed25519PrivateKey.generate())
    untouched.refuses(forged, job.body, "not the pinned aggregator's")


def test_an_owner_refuses_a_manifest_of_which_one_bit_was_changed(untouched: Stage) -> None:
    job = untouched.job()
    good = signed(untouched, manifest(untouched, job))
    changed = good.body[:-1] + bytes([good.body[-1] ^ 1])
    forged = pb.Signed(type=good.type, body=changed, signature=good.signature)
    untouched.refuses(forged, job.body, "not the pinned aggregator's")


def test_an_owner_refuses_what_was_signed_as_something_else(untouched: Stage) -> None:
    job = untouched.job()
    body = manifest(untouched, job).SerializeToString()
    as_statement = sign(untouched.key, STATEMENT, body)
    untouched.refuses(as_statement, job.body, "expected a signed cairn.v1.RoundManifest")
    kind = "cairn.v1.RoundManifest"
    renamed = pb.Signed(type=kind, body=body, signature=as_statement.signature)
    untouched.refuses(renamed, job.body, "not the pinned aggregator's")


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": "elsewhere"},
        {"cohort": ("bob", "carol", "dave")},
        {"job": "another"},
        {"weighting": pb.WEIGHTING_EXAMPLES},
        {"aggregation": pb.Aggregation()},
        {"aggregation": aggregation_to_pb(ADAM)},
        {"phase": 9},
        {"protocol": 1},
    ],
    ids=["federation", "cohort", "job", "weighting", "no rule", "optimizer", "phase", "protocol"],
)
def test_an_owner_refuses_a_manifest_that_is_not_for_it_or_that_it_does_not_understand(
    untouched: Stage, changes: dict[str, Any]
) -> None:
    job = untouched.job()
    untouched.refuses(signed(untouched, manifest(untouched, job, **changes)), job.body)


def test_an_owner_refuses_another_job_than_the_one_the_manifest_names(untouched: Stage) -> None:
    job, other = untouched.job(), untouched.job(rounds=7)
    spec = pb.JobSpec.FromString(job.body)
    spec.settings["lr"] = 0.2
    good = signed(untouched, manifest(untouched, job))
    for body in (other.body, spec.SerializeToString(), job.body + b"\x7a\x00"):
        untouched.refuses(good, body, "not the one the aggregator signed for")


def test_an_owner_declines_a_base_that_is_not_the_last_release(untouched: Stage) -> None:
    job = untouched.job()
    broken = manifest(untouched, job, round=2, previous_release_digest=bytes(32))
    untouched.declines(signed(untouched, broken), job.body, "CHAIN_BROKEN")


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 1e6},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"lr": 0.1, "batch": 1},
    ],
    ids=str,
)
def test_an_owner_declines_settings_outside_its_own_ranges(
    untouched: Stage, settings: dict[str, float]
) -> None:
    job = untouched.job()
    spec = pb.JobSpec.FromString(job.body)
    for name, value in settings.items():
        spec.settings[name] = value
    job.body = spec.SerializeToString(deterministic=True)
    untouched.declines(signed(untouched, manifest(untouched, job)), job.body, "SETTING_REFUSED")


@pytest.mark.parametrize("task", ["os.system", "pickle.loads", "task.py", "tests.hostile.stage"])
def test_an_owner_runs_no_code_that_a_job_names(untouched: Stage, task: str) -> None:
    job = untouched.job()
    spec = pb.JobSpec.FromString(job.body)
    spec.task = task
    job.body = spec.SerializeToString(deterministic=True)
    untouched.declines(signed(untouched, manifest(untouched, job)), job.body, "UNKNOWN_TASK")


@pytest.mark.parametrize("field", ["name", "task", "federation"])
def test_an_owner_refuses_yaml_tags_and_pickles_where_a_job_is_expected(
    untouched: Stage, field: str
) -> None:
    job = untouched.job()
    spec = pb.JobSpec.FromString(job.body)
    setattr(spec, field, "!!python/object/apply:os.system ['touch was-run']")
    for body in (spec.SerializeToString(), f"cos\nsystem\n(S'touch {field}'\ntR.".encode()):
        job.body = body
        untouched.refuses(signed(untouched, manifest(untouched, job)), body)
    assert not (untouched.network.directory / "was-run").exists()


def test_the_watch_on_the_data_notices_when_a_round_is_trained(stage: Stage) -> None:
    """The positive control: a good invitation is followed, and its data is opened."""
    job, base = stage.job(), fresh_base()
    opened = job.open(COHORT, base)
    stage.coordinator.models[opened.manifest.base_digest] = base
    with opened_files(stage.data) as files:
        stage.invite(opened.signed, job.body)
        for owner in ("bob", "carol"):
            opened.join(owner)
            opened.push(owner, bytes(12))
        assert opened.ends().statement.contributors == 3
        assert {"mode", "value"} <= set(files())
