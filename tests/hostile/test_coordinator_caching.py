"""A coordinator that has an owner train on another base than the manifest names, by way of what it keeps.

Two jobs of different models may name the same digest; only one model has it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest

from cairn.model.schema import Schema, TensorSpec
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.hostile.stage import COHORT, LARGE, LINEAR, Stage, fresh_base
from tests.service.network import SECONDS, Ended, Job, OpenRound

OTHER = Schema.of([TensorSpec("weight", "F32", (5, 2)), TensorSpec("bias", "F32", (1,))])


def opened_with(job: Job, digest: bytes) -> OpenRound:
    """The first round of a job, from the base that is said to have this digest."""
    request = aggregator_pb2.OpenRoundRequest(
        job=job.spec.name, round=1, phase=pb.PHASE_TRAIN, cohort=COHORT, base_digest=digest, epoch=1
    )
    return OpenRound(job, job.coordinator.OpenRound(request, timeout=SECONDS).manifest)


def ended_with_alice(stage: Stage, opened: OpenRound) -> Ended:
    """The others' updates are zero, so that three times the average is what alice pushed."""
    stage.invite(opened.signed, opened.job.body)
    for owner in ("bob", "carol"):
        opened.join(owner)
        opened.push(owner, bytes(opened.job.spec.schema.total_bytes))
    return opened.ends()


def fetches(stage: Stage, digest: bytes) -> int:
    return stage.coordinator.fetched.count(("alice", digest))


def alices_update(base: bytes) -> np.ndarray:
    """By the arithmetic of the task: half the base, and alice's value."""
    return np.frombuffer(base, "<f4") * np.float32(0.5) + np.float32(1.0)


def test_a_job_of_another_model_does_not_make_an_owner_train_on_another_base(
    stage: Stage,
) -> None:
    base = fresh_base()
    digest = LINEAR.digest(base)
    stage.coordinator.models[digest] = base
    for number in (1, 2):
        ended = ended_with_alice(stage, opened_with(stage.job(), digest))
        assert ended.statement.contributors == 3
        pushed = np.frombuffer(ended.payload, "<f4") * 3
        np.testing.assert_allclose(pushed, alices_update(base), rtol=1e-6)
        assert fetches(stage, digest) == number
        between = opened_with(stage.job(schema=OTHER), digest)
        stage.declines(between.signed, between.job.body, "SCHEMA_MISMATCH")
        assert fetches(stage, digest) == number


@contextmanager
def clipping(stage: Stage) -> Iterator[None]:
    """Alice clips what leaves, if only far away: then her base outlives the training."""
    config = stage.network.directory / "alice.toml"
    text = config.read_text()
    for changed in (
        text.replace("[tasks.task.settings]", "clip = 1e9\n[tasks.task.settings]"),
        text,
    ):
        stage.alice.kill()
        config.write_text(changed)
        stage.alice = stage.start_alice()
        if changed != text:
            yield


@pytest.mark.parametrize(("clips", "times"), [(True, 1), (False, 2)])
def test_a_base_that_an_owner_has_is_not_fetched_again(
    stage: Stage, *, clips: bool, times: int
) -> None:
    """The positive control: what is kept is used, where it is the same. What was trained in place is not."""
    base = fresh_base()
    digest = LINEAR.digest(base)
    stage.coordinator.models[digest] = base
    with clipping(stage) if clips else nullcontext():
        for _ in range(2):
            ended = ended_with_alice(stage, opened_with(stage.job(), digest))
            pushed = np.frombuffer(ended.payload, "<f4") * 3
            np.testing.assert_allclose(pushed, alices_update(base), rtol=1e-6)
    assert fetches(stage, digest) == times


@pytest.mark.parametrize("size", [(1 << 20) + 4, 2 << 20])
def test_a_model_in_chunks_larger_than_agreed_is_not_taken(
    stage: Stage, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = np.full(LARGE.tensors[0].shape, fresh_base()[0], "<f4").tobytes()
    stage.coordinator.models[LARGE.digest(base)] = base
    opened = opened_with(stage.job(schema=LARGE, task="large"), LARGE.digest(base))
    monkeypatch.setattr(stage.coordinator, "chunk_bytes", size)
    stage.declines(opened.signed, opened.job.body, "BASE_MISMATCH")
    (entry,) = [
        e for e in stage.entries("declined") if e.facts["manifest_digest"] == opened.digest.hex()
    ]
    assert "a chunk of the model has 1 to 1048576 bytes" in entry.facts["why"]
