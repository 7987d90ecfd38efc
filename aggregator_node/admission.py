"""What the aggregator allows of a job and of a round. Pure."""

from collections.abc import Collection
from dataclasses import dataclass, field

from aggregator_node.storage.rows import Progress
from cairn.errors import InvalidMessage, LimitExceeded, WrongState
from cairn.model.validation import Bounds
from cairn.protocol.aggregation import RULES_UNLESS_SAID, Aggregation
from cairn.protocol.cohorts import are_of_one_group, check_group_sizes
from cairn.protocol.limits import LARGEST_SHARE
from cairn.protocol.messages import JobSpec
from cairn.protocol.privacy import PrivacyBudget
from cairn.protocol.statistics import MIN_CELL, base_digest_of
from cairn.protocol.words import OPTIMIZERS, word_of
from cairn.runtime.timeouts import LEASE_SECONDS
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
    lease_seconds: int = LEASE_SECONDS
    weight_ratio: int = 1000
    largest_share: float = LARGEST_SHARE
    model_bytes: int = 8 << 30
    bounds: Bounds = field(default_factory=Bounds)
    rules: frozenset["pb.Rule"] = RULES_UNLESS_SAID
    optimizers: frozenset["pb.Optimizer"] = frozenset(OPTIMIZERS.values())
    min_cell: int = MIN_CELL
    max_epsilon: float | None = None

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
        self._check_aggregation(job)
        if job.statistics is not None and job.statistics.min_cell < self.min_cell:
            raise InvalidMessage(
                f"the job releases cells of {job.statistics.min_cell} examples, the aggregator's file none of fewer than"
                f" {self.min_cell}: write min_cell = {self.min_cell} or more in the job's file"
            )

    def _check_aggregation(self, job: JobSpec) -> None:
        aggregation, floor = job.aggregation, self.floor_of(job)
        for key, enum, value, allowed in (
            ("rules", pb.Rule, aggregation.rule, self.rules),
            ("optimizers", pb.Optimizer, aggregation.optimizer, self.optimizers),
        ):
            if value not in allowed:
                words = ", ".join(sorted(word_of(enum, each) for each in allowed))
                raise InvalidMessage(
                    f"the job asks for {word_of(enum, value)}; the aggregator's file allows {words} ({key})",
                    pb.REASON_RULE_REFUSED,
                )
        check_floor_of_rule(aggregation, len(job.owners), floor)
        self._check_budget(PrivacyBudget.of(aggregation))

    def _check_budget(self, budget: PrivacyBudget | None) -> None:
        """Bounds what a private job may tell of one owner; its first round must be within that."""
        if budget is None:
            return
        if self.max_epsilon is not None and budget.epsilon > self.max_epsilon:
            raise InvalidMessage(
                f"the job may tell epsilon {budget.epsilon:g} of one owner; the aggregator's file allows"
                f" {self.max_epsilon:g} (max_epsilon)",
                pb.REASON_RULE_REFUSED,
            )
        if not budget.allows(1):
            raise InvalidMessage(
                f"the budget allows no round: with noise = {budget.noise:g} one release tells epsilon"
                f" {budget.spent_by(1):.4g} of one owner at delta = {budget.delta:g}, and the job allows"
                f" {budget.epsilon:g}: raise noise or epsilon in the job's file",
                pb.REASON_BUDGET_SPENT,
            )

    def _check_weights(self, job: JobSpec) -> None:
        """Bounds how unlike the weights of a job may be; no update counts more than its share of them."""
        ratio = -(-job.max_examples // job.min_examples)
        if job.weighting == pb.WEIGHTING_EXAMPLES and ratio > self.weight_ratio:
            raise InvalidMessage(
                f"the job lets one update count {ratio} times as much as another, this aggregator"
                f" {self.weight_ratio} times: narrow examples = [fewest, most] in the job's file",
                pb.REASON_EXAMPLES_REFUSED,
            )


def check_floor_of_rule(aggregation: Aggregation, owners: int, floor: int) -> None:
    """Raise InvalidMessage where the rule would average over fewer than the floor, if all these owners push."""
    averaged = aggregation.averages_over(owners, floor)
    if averaged < floor:
        cure = "take more owners, or other numbers of the rule"
        if not averaged:
            said = f"{owners} owners are too few for {aggregation}: {cure}"
        else:
            said = (
                f"of {owners} owners, every element of a release by {aggregation} would be an average over"
                f" {averaged} at least; the floor is {floor}: {cure}"
            )
        raise InvalidMessage(said, pb.REASON_RULE_REFUSED)


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
    if job.statistics is not None:
        _check_counting(job, opening)
    if opening.phase == pb.PHASE_TRAIN:
        check_floor_of_rule(job.aggregation, len(opening.cohort), floor)
        _check_training(job, progress, opening)
    else:
        _check_evaluation(job, progress, opening)
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


def _check_counting(job: JobSpec, opening: Opening) -> None:
    if opening.phase != pb.PHASE_TRAIN:
        raise InvalidMessage(f"{job.name} counts data: there is no model to evaluate")
    if opening.base_digest != base_digest_of(job.schema):
        raise InvalidMessage(
            f"{job.name} counts data: its base is the model of zeros", pb.REASON_BASE_MISMATCH
        )


def _check_training(job: JobSpec, progress: Progress, opening: Opening) -> None:
    if progress.released >= job.rounds:
        raise WrongState(f"all {job.rounds} rounds of {job.name} were released")
    if opening.round != progress.opened + 1:
        raise WrongState(
            f"round {opening.round} is out of turn: the next of {job.name} is {progress.opened + 1}"
        )


def _check_evaluation(job: JobSpec, progress: Progress, opening: Opening) -> None:
    if job.aggregation.is_private:
        raise InvalidMessage(
            f"{job.name} is a private job, which has no evaluation: no noise is added to metrics",
            pb.REASON_RULE_REFUSED,
        )
    if opening.round != progress.release_round or opening.round != progress.opened:
        raise WrongState(
            f"round {opening.round} cannot be evaluated: the last release is that of round"
            f" {progress.release_round}"
        )
    if opening.round == progress.evaluated:
        raise WrongState(f"the evaluation of round {opening.round} was opened before")
