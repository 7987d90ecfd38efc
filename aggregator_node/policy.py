"""What the aggregator allows of a job and of a round. Pure."""

from collections.abc import Collection
from dataclasses import dataclass

from cairn.errors import InvalidMessage, WrongState
from cairn.messages import JobSpec
from cairn.v1 import round_pb2 as pb


@dataclass(frozen=True)
class Policy:
    """The aggregator's own rules, from its file."""

    federation: str
    owners: Collection[str]
    floor: int

    def floor_of(self, job: JobSpec) -> int:
        """The smallest cohort that may be released: the larger of the job's and the aggregator's."""
        return max(job.floor, self.floor)

    def check_job(self, job: JobSpec) -> None:
        """Raise InvalidMessage for a job that this aggregator does not serve."""
        if job.federation != self.federation:
            raise InvalidMessage(
                f"the job is for the federation {job.federation}, this aggregator serves"
                f" {self.federation}"
            )
        strangers = sorted(set(job.owners) - set(self.owners))
        if strangers:
            raise InvalidMessage(
                f"the aggregator does not know {', '.join(strangers)}: its file lists under owners"
                f" {', '.join(sorted(self.owners))}"
            )
        if len(job.owners) < self.floor_of(job):
            raise InvalidMessage(
                f"the job has {len(job.owners)} owners, the floor is {self.floor_of(job)}: no round"
                " could ever be released"
            )


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    `opened` is the number of the last training round that was opened, in whatever way it ended;
    `released` counts the releases with a model; `release_round` and `release_digest` name the last of
    them; `evaluated` is the number of the last round whose evaluation was opened.
    """

    opened: int = 0
    released: int = 0
    release_round: int = 0
    release_digest: bytes = b""
    evaluated: int = 0


@dataclass(frozen=True)
class Opening:
    """A coordinator's request to open a round."""

    round: int
    phase: "pb.Phase"
    cohort: tuple[str, ...]
    base_digest: bytes


def check_opening(policy: Policy, job: JobSpec, progress: Progress, opening: Opening) -> None:
    """Raise InvalidMessage or WrongState for a round that may not be opened."""
    strangers = sorted(set(opening.cohort) - (set(job.owners) & set(policy.owners)))
    if strangers:
        raise InvalidMessage(f"{', '.join(strangers)} cannot be in a cohort of {job.name}")
    floor = policy.floor_of(job)
    if len(opening.cohort) < floor:
        raise InvalidMessage(f"a cohort of {len(opening.cohort)} is below the floor of {floor}")
    if opening.phase == pb.PHASE_TRAIN:
        _check_training(job, progress, opening)
    else:
        _check_evaluation(progress, opening)
    if progress.release_digest and opening.base_digest != progress.release_digest:
        raise WrongState(
            "the base is not the last release: in a strict chain a round starts from the release of"
            f" round {progress.release_round}, bit by bit"
        )


def _check_training(job: JobSpec, progress: Progress, opening: Opening) -> None:
    if progress.released >= job.rounds:
        raise WrongState(f"all {job.rounds} rounds of {job.name} were released")
    if opening.round != progress.opened + 1:
        raise WrongState(
            f"round {opening.round} is out of turn: the next of {job.name} is {progress.opened + 1}"
        )


def _check_evaluation(progress: Progress, opening: Opening) -> None:
    if opening.round != progress.release_round or opening.round != progress.opened:
        raise WrongState(
            f"round {opening.round} cannot be evaluated: the last release is that of round"
            f" {progress.release_round}"
        )
    if opening.round == progress.evaluated:
        raise WrongState(f"the evaluation of round {opening.round} was opened before")
