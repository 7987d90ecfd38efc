"""What this owner allows of an invitation. Pure; it decides before any data is opened."""

from collections.abc import Mapping
from dataclasses import dataclass

from cairn.errors import CairnError, InvalidMessage
from cairn.messages import JobSpec, Manifest, digest_of
from cairn.v1 import round_pb2 as pb

Ranges = Mapping[str, tuple[float, float]]


class Declined(CairnError):
    """This owner does not take part; the reason is all that the others learn."""

    def __init__(self, message: str, reason: "pb.Reason") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Policy:
    """The owner's rules, from its file: `tasks` has the allowed ranges of each task's settings."""

    federation: str
    owner: str
    floor: int
    tasks: Mapping[str, Ranges]

    def check(
        self, manifest: Manifest, job: JobSpec, job_spec: bytes, last: tuple[int, int]
    ) -> None:
        """Raise InvalidMessage for an invitation that is not for us, Declined for one we refuse.

        `last` is the round and the phase this owner last took part in, in this job.
        """
        if digest_of(job_spec) != manifest.job_digest or job.name != manifest.job:
            raise InvalidMessage("the invitation's job is not the one the aggregator signed for")
        if manifest.federation != self.federation or job.federation != self.federation:
            raise InvalidMessage("the invitation is for another federation")
        if self.owner not in manifest.cohort:
            raise InvalidMessage("the invitation's cohort does not have this owner")
        if manifest.floor < self.floor or len(manifest.cohort) < manifest.floor:
            raise Declined(
                f"the floor of {manifest} is {manifest.floor}, this owner's file asks for"
                f" {self.floor}",
                pb.REASON_FLOOR_TOO_LOW,
            )
        if (manifest.round, manifest.phase) < last:
            raise Declined(f"{manifest} is older than round {last[0]}", pb.REASON_STALE_ROUND)
        self._check_task(job)

    def _check_task(self, job: JobSpec) -> None:
        ranges = self.tasks.get(job.task)
        if ranges is None:
            known = ", ".join(self.tasks) or "none"
            raise Declined(
                f"the job asks for the task {job.task}; this owner's file has {known}",
                pb.REASON_UNKNOWN_TASK,
            )
        for key, value in job.settings.items():
            if key not in ranges:
                raise Declined(
                    f"the job sets {key} = {value:g}; this owner's file has no"
                    f" tasks.{job.task}.settings.{key}",
                    pb.REASON_SETTING_REFUSED,
                )
            low, high = ranges[key]
            if not low <= value <= high:
                raise Declined(
                    f"the job sets {key} = {value:g}; this owner allows {low:g} to {high:g}",
                    pb.REASON_SETTING_REFUSED,
                )
