"""A coordinator that invites an owner to a second job, to see when the owner is done with the first."""

from tests.hostile.stage import COHORT, Stage, fresh_base
from tests.hostile.test_coordinator_outcomes import opened_round, training
from tests.scenarios.processes import until


def test_when_an_owner_is_done_with_its_training_does_not_show_in_a_second_job(
    stage: Stage,
) -> None:
    first = opened_round(stage)
    second = opened_round(stage)
    known = len(stage.coordinator.fetched)
    with training(stage, first):
        stage.invite(second.signed, second.job.body)
    waits = "waiting for the end of a round of another job"
    until(lambda: stage.alice.events(waits), "alice waits, although she is done")
    digests = [entry.facts["manifest_digest"] for entry in stage.entries("receipt")]
    assert first.digest.hex() in digests
    assert len(stage.coordinator.fetched) == known + 1  # the base of the first job
    assert second.digest.hex() not in [e.facts["manifest_digest"] for e in stage.entries("joined")]
    first.abort()  # at a moment of the coordinator's own choice
    fetched = second.manifest.base_digest
    until(lambda: ("alice", fetched) in stage.coordinator.fetched, "alice goes on")


def test_an_owner_answers_the_next_job_at_once_where_the_round_before_has_ended(
    stage: Stage,
) -> None:
    base = fresh_base()
    job = stage.job()
    stage.coordinator.models[job.spec.schema.digest(base)] = base
    opened = job.open(COHORT, base)
    known = len(stage.alice.events("waiting for the end of a round of another job"))
    stage.invite(opened.signed, job.body)
    digest = opened.digest.hex()
    until(
        lambda: digest in [e.facts["manifest_digest"] for e in stage.entries("sent")], "alice sends"
    )
    assert len(stage.alice.events("waiting for the end of a round of another job")) == known
