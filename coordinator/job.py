"""A job as the coordinator has it: what it registers, and the model that a round starts from."""

from dataclasses import dataclass

from cairn.errors import CairnError, UsageError
from cairn.model.schema import Schema
from cairn.protocol.messages import JobSpec, digest_of, job_spec_from_bytes, job_spec_to_bytes
from cairn.protocol.words import ENCODINGS, WEIGHTINGS
from coordinator.best_release import BestSettings
from coordinator.groups import Sampling, groups_of
from coordinator.settings import JobSettings


@dataclass(frozen=True)
class Job:
    """A job as it is registered, and what only the coordinator needs to know of it."""

    spec: JobSpec
    spec_bytes: bytes
    sampling: Sampling
    evaluates: bool
    gather_seconds: float
    best: BestSettings | None = None

    @property
    def digest(self) -> str:
        return digest_of(self.spec_bytes).hex()


@dataclass(frozen=True)
class Base:
    """The model that the next round starts from."""

    schema: Schema
    payload: memoryview
    digest: bytes


def planned(job: JobSettings, federation: str, schema: Schema) -> Job:
    """The job of this file, with a model of these tensors. Raises UsageError for one that cannot be run."""
    groups = groups_of(job.owners, job.groups, job.seed, job.name)
    spec = JobSpec(
        federation=federation,
        name=job.name,
        task=job.task,
        settings=job.settings,
        owners=tuple(sorted(job.owners)),
        floor=job.floor,
        rounds=job.rounds,
        weighting=WEIGHTINGS[job.weighting],
        schema=schema,
        round_deadline_seconds=job.round_deadline_seconds,
        min_examples=job.examples[0],
        max_examples=job.examples[1],
        encoding=ENCODINGS[job.updates],
        groups=groups if job.groups > 1 else (),
        aggregation=job.aggregation,
        statistics=None if job.statistics is None else job.statistics.counted,
    )
    body = job_spec_to_bytes(spec)
    try:
        job_spec_from_bytes(body)  # what the aggregator will check, said before anything is sent
    except CairnError as error:
        raise UsageError(f"the job {job.name} cannot be run: {error}") from None
    sampling = Sampling(groups, job.seed, job.name)
    return Job(spec, body, sampling, job.evaluate, job.gather_seconds, job.best)
