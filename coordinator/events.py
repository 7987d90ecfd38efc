"""What happens in a job, as values. Whoever runs rounds tells them to an observer; the console is one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cairn.protocol.messages import JobSpec
from cairn.protocol.privacy import PrivacyBudget
from cairn.v1 import round_pb2 as pb
from coordinator.best_release import BestSoFar
from coordinator.needed_owners import Needed
from coordinator.schedule import Step


@dataclass(frozen=True)
class JobStarted:
    """The aggregator has registered the job, or goes on with it after so many releases."""

    spec: JobSpec
    aggregator: str
    floor: int
    released: int


@dataclass(frozen=True)
class ChoiceDoubted:
    """A choice of the job is allowed and does not do what its name promises; the sentence says which, and the cure."""

    sentence: str


@dataclass(frozen=True)
class OwnersAwaited:
    """Too few owners attend; the others are waited for, for so many seconds."""

    owners: Sequence[str]
    present: Sequence[str]
    needed: Needed
    of_one_group: bool
    seconds: float


@dataclass(frozen=True)
class GroupPassedOver:
    """Of a group whose turn it was fewer owners attend than are needed."""

    round: int
    group: int
    needed: Needed


@dataclass(frozen=True)
class OwnerNotCounted:
    """An invited owner is not in the average, or would not have been."""

    round: int
    owner: str
    reason: "pb.Reason"


@dataclass(frozen=True)
class OwnerRests:
    """An owner that was not counted again and again is not invited until this round."""

    round: int
    owner: str
    until_round: int


@dataclass(frozen=True)
class RoundAborted:
    """A training, or an evaluation, ended without a release."""

    step: Step
    reason: "pb.Reason"


@dataclass(frozen=True)
class MetricsMissing:
    """The release of a training came without metrics, where the one before had some."""

    round: int


@dataclass(frozen=True)
class BestMetricMissing:
    """An evaluation came without the metric that releases are judged by, with the `others`; the one before had it."""

    round: int
    metric: str
    others: Sequence[str]


@dataclass(frozen=True)
class RoundFinished:
    """A release is in the run's folder, with its evaluation where there is one.

    `release` is its number among the `releases` that the job is to have, and `round` the aggregator's number of the
    round. `metrics` has the averages by name, and `group` the group's number where the job has several. `is_best`
    says that no earlier release is as good, where the job looks for the best. `epsilon` is what the job has told of an
    owner at the most, up to this release, where it has a `budget` for that.
    """

    release: int
    releases: int
    round: int
    contributors: int
    group: int | None
    metrics: Mapping[str, float]
    seconds: float
    is_best: bool = False
    epsilon: float | None = None
    budget: PrivacyBudget | None = None


@dataclass(frozen=True)
class BudgetSpent:
    """The job ends before its last round: another would tell more of an owner than its budget allows."""

    released: int
    rounds: int
    budget: PrivacyBudget


@dataclass(frozen=True)
class StoppedEarly:
    """The job ends before its last round: it has waited long enough for a gain of `min_delta`."""

    released: int
    rounds: int
    min_delta: float
    best: BestSoFar


@dataclass(frozen=True)
class BestModelKept:
    """The best release of a job that has ended is in this file."""

    model: Path
    best: BestSoFar


@dataclass(frozen=True)
class JobFinished:
    """All releases are in the folder; the model is the last."""

    model: Path
    digest: bytes


@dataclass(frozen=True)
class StatisticsReleased:
    """What a job of statistics has counted is in this file: the `report` of cairn/protocol/summary.py."""

    file: Path
    report: dict[str, Any]


Ending = BudgetSpent | StoppedEarly | BestModelKept | JobFinished | StatisticsReleased
Event = (
    JobStarted
    | ChoiceDoubted
    | OwnersAwaited
    | GroupPassedOver
    | OwnerNotCounted
    | OwnerRests
    | RoundAborted
    | MetricsMissing
    | BestMetricMissing
    | RoundFinished
    | Ending
)
Observer = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """The observer of a job that nobody watches."""
