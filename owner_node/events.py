"""What happens to an owner in its rounds, as values. Whoever takes part tells them to an observer; the log is one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cairn.errors import CairnError
from owner_node.records.history import Unsettled


@dataclass(frozen=True)
class Event:
    """Something has happened."""


Observer = Callable[[Event], None]  # is called from any thread, and must not raise


@dataclass(frozen=True)
class RoundEvent(Event):
    """It has happened in this round of this job."""

    job: str
    round: int


@dataclass(frozen=True)
class ErrorEvent(Event):
    """It has happened because of this error."""

    error: CairnError


@dataclass(frozen=True)
class RoundErrorEvent(RoundEvent):
    """It has happened in this round because of this error."""

    error: CairnError


# Before and at the beginning of a round.


class InvitationRefused(ErrorEvent):
    """The invitation is not the aggregator's, or not for this owner."""


@dataclass(frozen=True)
class InvitationUnreadable(Event):
    """The invitation could not be read for a mistake in this code."""

    cause: Exception


@dataclass(frozen=True)
class OtherJobAwaited(Event):
    """Before anything is answered, the end of a round that this owner joined in another job, which is this one."""

    job: str


class Declined(RoundErrorEvent):
    """This owner does not take part, or gives up."""


class NotDeclined(ErrorEvent):
    """The aggregator could not be told that this owner does not take part."""


class LeftOut(RoundErrorEvent):
    """The aggregator does not let this owner take part, or not to the end."""


@dataclass(frozen=True)
class Joined(RoundEvent):
    """This owner takes part. `updates` says what they are and what becomes of them."""

    updates: str


class AcceptedBefore(RoundEvent):
    """The aggregator has accepted this owner's update already."""


# During the work.


class LeaseNotRenewed(ErrorEvent):
    """The aggregator could not be asked to go on waiting for this owner; it is asked again."""


class RoundEndedMeanwhile(ErrorEvent):
    """The aggregator says that the round is over for this owner."""


class DeadlinePassed(Event):
    """The round's deadline has passed before this owner was done."""


@dataclass(frozen=True)
class Queued(RoundEvent):
    """The update waits in the aggregator's line, at this place."""

    place: int


class RoundFailed(RoundErrorEvent):
    """The round came to nothing for a cause that is none of the usual ones."""


@dataclass(frozen=True)
class RoundCrashed(RoundEvent):
    """The round came to nothing for a mistake in this code."""

    cause: Exception


@dataclass(frozen=True)
class FailureCounted(Event):
    """A round failed for a cause that may depend on this owner's data; the task has so many failures by now."""

    task: str
    failures: int


@dataclass(frozen=True)
class PrivacySpent(RoundEvent):
    """Private training begins: with it the task's epsilon, at this delta, is so much of what is allowed."""

    epsilon: float
    allowed: float
    delta: float


# When an update leaves.


@dataclass(frozen=True)
class UnlistedMetricsDropped(RoundEvent):
    """The task reports metrics that this owner's file does not list."""

    metrics: Sequence[str]


@dataclass(frozen=True)
class NewMetricsDropped(RoundEvent):
    """The task reports metrics that it did not report the first time."""

    metrics: Sequence[str]


class PushedAgain(RoundEvent):
    """What was recorded as sent before this node was started leaves again."""


class UpdateRefused(RoundErrorEvent):
    """The aggregator does not accept the update."""


@dataclass(frozen=True)
class UpdateAccepted(RoundEvent):
    """The aggregator has the update, and has signed the receipt."""

    nbytes: int
    digest: bytes
    clipped: bool


class ReceiptNotKept(ErrorEvent):
    """The receipt could not be recorded."""


class ReceiptRefused(ErrorEvent):
    """The aggregator gives no good receipt for an update that left."""


class ReceiptNotFetched(RoundErrorEvent):
    """The aggregator could not be asked for the receipt of an update that it accepted before."""


class DecisionNotRecorded(ErrorEvent):
    """What this owner decided could not be recorded."""


# On this owner's own disk.


@dataclass(frozen=True)
class UpdateUnreadable(Event):
    """The finished update cannot be read, which is to leave again."""

    file: Path
    trouble: OSError


@dataclass(frozen=True)
class UpdateDamaged(Event):
    """The finished update is not the one that was recorded as sent."""

    file: Path


@dataclass(frozen=True)
class UpdateNotKept(Event):
    """The finished update cannot be kept: if this node dies in this round, it has to leave it."""

    file: Path
    trouble: OSError


@dataclass(frozen=True)
class KeptTensorsGone(RoundEvent):
    """What the task keeps of the job's last round is not there: it was dropped, or never written."""

    file: Path


@dataclass(frozen=True)
class FileNotRemoved(Event):
    """A file with an update that never leaves again, or with kept tensors that are not gone on with, stays."""

    file: Path
    trouble: OSError


# At the end of a round.


@dataclass(frozen=True)
class GivenUp(Event):
    """The coordinator says that a round has ended without a release, for a reason that may be unknown here."""

    reason: int


class StatementForged(ErrorEvent):
    """The coordinator sent a statement that is not the aggregator's."""


class EndAwaited(Event):
    """The coordinator's job has ended, and a round in which an update left has not."""


class AggregatorNotAsked(ErrorEvent):
    """The aggregator could not be asked how a round has ended."""


@dataclass(frozen=True)
class EndNotTold(Event):
    """The aggregator does not say how a round has ended: `about` is None where only the manifest is known."""

    about: Unsettled | None
    manifest: bytes
    error: CairnError


class CountNotKnown(ErrorEvent):
    """Whether the update was counted in a release is not known yet: its receipt could not be fetched."""


@dataclass(frozen=True)
class Released(RoundEvent):
    """The round has a release. `why_not` says why it does not count this owner; empty where it does."""

    contributors: int
    why_not: str


@dataclass(frozen=True)
class AcceptedAndLeftOut(RoundEvent):
    """The release leaves out an update that the aggregator has signed a receipt for."""

    manifest: bytes


@dataclass(frozen=True)
class CountedUnsent(RoundEvent):
    """The release may count an update in this owner's name that it never sent."""

    manifest: bytes


class EndNotRecorded(ErrorEvent):
    """How a round ended could not be recorded."""


@dataclass(frozen=True)
class EndCrashed(Event):
    """How a round ended could not be recorded for a mistake in this code."""

    cause: Exception
