"""What happens in jobs and rounds, as values. Whoever runs them tells these to an observer; the log is one."""

from collections.abc import Callable
from dataclasses import dataclass

from cairn.v1 import round_pb2 as pb


@dataclass(frozen=True)
class JobRegistered:
    """A coordinator's process has registered a job, new or known, and is in charge of it from now on."""

    job: str
    coordinator: str
    epoch: int


@dataclass(frozen=True)
class RoundEvent:
    """Something that happens in a round of a job."""

    job: str
    round: int


@dataclass(frozen=True)
class RoundOpened(RoundEvent):
    """The manifest is recorded; `cohort` is how many owners it names."""

    cohort: int


@dataclass(frozen=True)
class OwnerDeclined(RoundEvent):
    """An owner of the cohort does not take part."""

    owner: str
    reason: "pb.Reason"


@dataclass(frozen=True)
class UpdateAccepted(RoundEvent):
    """An owner's update counts."""

    owner: str


@dataclass(frozen=True)
class SumsRefused(RoundEvent):
    """There is no memory for the sums with this owner's update: the round has to end."""

    owner: str
    error: str


@dataclass(frozen=True)
class MetricsLeftOut(RoundEvent):
    """A release carries no metrics, because they overlap with those of an earlier one."""


@dataclass(frozen=True)
class RoundReleased(RoundEvent):
    """The average of so many owners, and its statement, are recorded."""

    contributors: int


@dataclass(frozen=True)
class RoundAborted(RoundEvent):
    """It is recorded that the round ended without a release."""

    reason: "pb.Reason"


@dataclass(frozen=True)
class ReleaseFailed(RoundEvent):
    """A sealed round could not be released. Keep no reference to the error: it has one to what was at work."""

    error: Exception


@dataclass(frozen=True)
class RecordFailed(RoundEvent):
    """The end of a round could not be recorded; the next opening or the next start does it."""

    error: Exception


Event = JobRegistered | RoundEvent
Observer = Callable[[Event], None]
