"""A coordinator that fills an owner's memory, by a model that is not its task's."""

import secrets

from cairn.model.schema import Schema, TensorSpec
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.hostile.checks import bounded
from tests.hostile.stage import COHORT, LINEAR, Stage
from tests.service.network import SECONDS, Job, OpenRound

BALLAST = 384 << 20  # elements: 1.5 GB for a task of three numbers
MOST = 64 << 20


def opened_with_any_base(job: Job) -> OpenRound:
    """A round that starts from a model which nobody has."""
    request = aggregator_pb2.OpenRoundRequest(
        job=job.spec.name,
        round=1,
        phase=pb.PHASE_TRAIN,
        cohort=COHORT,
        base_digest=secrets.token_bytes(32),
        epoch=job.epoch,
    )
    return OpenRound(job, job.coordinator.OpenRound(request, timeout=SECONDS).manifest)


def test_a_model_that_is_not_the_tasks_own_is_not_fetched_and_takes_no_memory(stage: Stage) -> None:
    schema = Schema.of([*LINEAR.tensors, TensorSpec("ballast", "F32", (BALLAST,))])
    opened = opened_with_any_base(stage.job(schema=schema))
    fetched = len(stage.coordinator.fetched)
    with bounded(stage.alice.pid, MOST):
        stage.declines(opened.signed, opened.job.body, "SCHEMA_MISMATCH")
    assert len(stage.coordinator.fetched) == fetched
