"""What the aggregator allows of a job, of a round and of a release. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from cairn.errors import InvalidMessage, LimitExceeded, WrongState
from cairn.model.validation import Bounds
from cairn.protocol.cohorts import are_of_one_group, check_group_sizes
from cairn.protocol.limits import LARGEST_SHARE
from cairn.protocol.messages import JobSpec
from cairn.v1 import round_pb2 as pb

MAX_OPEN_ROUNDS = 64  # of one coordinator: each has a thread, and memory for its updates
# Of one coordinator, since the aggregator's start, for want of memory for the sums: whether they grow so far can
# depend on owners' values.
MAX_EXHAUSTED_ROUNDS = 3
MAX_ABORTS = 20  # of a job by its coordinator, since its last release
# Of the specifications of one coordinator's jobs without a release. A smaller one counts as LEAST_JOB_BYTES: each job
# has entries in the ledger as well, and without a least there could be millions of them.
MAX_UNRELEASED_BYTES = 256 << 20
LEAST_JOB_BYTES = 256 << 10


@dataclass(frozen=True)
class AdmissionPolicy:
    """The aggregator's own rules, from its file; `owners` is the roster as it stands now."""

    federation: str
    owners: Collection[str]
    floor: int
    weight_ratio: int = 1000
    largest_share: float = LARGEST_SHARE
    model_bytes: int = 8 << 30
    bounds: Bounds = field(default_factory=Bounds)

    def floor_of(self, job: JobSpec) -> int:
        """The smallest cohort that may be released: the larger of the job's and the aggregator's."""
        return max(job.floor, self.floor)

    def check_job(self, job: JobSpec) -> None:
        """Raise InvalidMessage or LimitExceeded for a job that this aggregator does not serve."""
        if job.federation != self.federation:
            raise InvalidMessage(
                f"the job is for the federation {job.federation}, this aggregator serves"
                f" {self.federation}"
            )
        strangers = sorted(set(job.owners) - set(self.owners))
        if strangers:
            raise InvalidMessage(
                f"the aggregator does not know {', '.join(strangers)}: its file lists under owners"
                f" {', '.join(sorted(self.owners))}",
                pb.REASON_UNKNOWN_OWNER,
            )
        if len(job.owners) < self.floor_of(job):
            raise InvalidMessage(
                f"the job has {len(job.owners)} owners, the floor is {self.floor_of(job)}: no round"
                " could ever be released",
                pb.REASON_COHORT_TOO_SMALL,
            )
        check_group_sizes(job.groups, self.floor_of(job))
        if not job.schema.total_bytes:
            raise InvalidMessage(
                "no tensor of the model has an element: there is nothing to train or to average"
            )
        if job.schema.total_bytes > self.model_bytes:
            raise LimitExceeded(
                f"the model has {job.schema.total_bytes} bytes, this aggregator takes"
                f" {self.model_bytes}: raise largest_model_megabytes in its file"
            )
        self._check_weights(job)

    def _check_weights(self, job: JobSpec) -> None:
        """Bounds how unlike the weights of a job may be; no update counts more than its share of them."""
        ratio = -(-job.max_examples // job.min_examples)
        if job.weighting == pb.WEIGHTING_EXAMPLES and ratio > self.weight_ratio:
            raise InvalidMessage(
                f"the job lets one update count {ratio} times as much as another, this aggregator"
                f" {self.weight_ratio} times: narrow examples = [fewest, most] in the job's file",
                pb.REASON_EXAMPLES_REFUSED,
            )


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    `opened` is the number of the last training round that was opened, in whatever way it ended;
    `released` counts the releases with a model; `release_round` and `release_digest` name the last of
    them; `evaluated` is the number of the last round whose evaluation was opened; `aborts` is how
    many rounds since the last release its coordinator ended.
    """

    opened: int = 0
    released: int = 0
    release_round: int = 0
    release_digest: bytes = b""
    evaluated: int = 0
    aborts: int = 0


@dataclass(frozen=True)
class Opening:
    """A coordinator's request to open a round."""

    round: int
    phase: "pb.Phase"
    cohort: tuple[str, ...]
    base_digest: bytes


def check_opening(
    policy: AdmissionPolicy, job: JobSpec, progress: Progress, opening: Opening
) -> None:
    """Raise InvalidMessage or WrongState for a round that may not be opened."""
    strangers = sorted(set(opening.cohort) - (set(job.owners) & set(policy.owners)))
    if strangers:
        raise InvalidMessage(
            f"{', '.join(strangers)} cannot be in a cohort of {job.name}", pb.REASON_UNKNOWN_OWNER
        )
    floor = policy.floor_of(job)
    if len(opening.cohort) < floor:
        raise InvalidMessage(
            f"a cohort of {len(opening.cohort)} is below the floor of {floor}",
            pb.REASON_COHORT_TOO_SMALL,
        )
    if not are_of_one_group(job.groups, opening.cohort):
        raise InvalidMessage(
            f"the cohort has owners of more than one group of {job.name}: over the rounds, averages of"
            " groups that are mixed would tell of single owners",
            pb.REASON_MIXED_GROUPS,
        )
    if opening.phase == pb.PHASE_TRAIN:
        _check_training(job, progress, opening)
    else:
        _check_evaluation(progress, opening)
    if progress.release_digest and opening.base_digest != progress.release_digest:
        raise WrongState(
            "the base is not the last release: in a strict chain a round starts from the release of"
            f" round {progress.release_round}, bit by bit",
            pb.REASON_CHAIN_BROKEN,
        )
    if progress.aborts >= MAX_ABORTS:
        raise WrongState(
            f"{progress.aborts} rounds of {job.name} were ended by its coordinator since the last release:"
            " the job is closed; go on under a new name",
            pb.REASON_TOO_MANY_ABORTS,
        )


@dataclass(frozen=True)
class Average:
    """What an average is over: the counted owners, and how much each may count.

    `least` and `most` are the smallest and the largest weight of one update. `may_be_capped` says whether one of
    them may count for less than its weight, because of the others' weights.
    """

    owners: frozenset[str]
    least: int
    most: int
    may_be_capped: bool


def are_different(average: Average, earlier: Iterable[Average]) -> bool:
    """Whether an average and earlier ones of the same quantities together would tell of too few owners.

    Averages over S and over S without v tell what v alone contributed; so do several sets that overlap,
    each differing from the others by many; and equal and unequal shares in the same updates are two
    equations for them. Comparable releases therefore count the same owners in the same way, or have
    nobody in common: then no sum of them is over fewer owners than one of them. Releases that are not
    comparable are kept apart by the groups of a job, where it has some: see `check_opening`.

    Where weights may be capped, the same owners never count in the same way for sure: one that says another
    number of examples moves the cap, and with it what others count for. Whether a cap was needed would itself
    tell of others' numbers, so it is not looked at.
    """
    return any(
        average.owners & other.owners and (average != other or average.may_be_capped)
        for other in earlier
    )


def check_difference(average: Average, earlier: Iterable[Average]) -> None:
    """Raise WrongState where an average is different from an earlier one that it overlaps with."""
    if are_different(average, earlier):
        raise WrongState(
            "an earlier release counts some of these owners together with others, or weights them"
            " otherwise (also where the bounds of examples let one outweigh the others, so that weights may be"
            " capped): several such averages together would tell of single owners",
            pb.REASON_COHORT_DIFFERENCE,
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
