"""What this owner allows of an invitation. Pure; it decides before any data is opened."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cairn.errors import CairnError, InvalidMessage
from cairn.protocol.aggregation import RULES_UNLESS_SAID
from cairn.protocol.cohorts import are_of_one_group
from cairn.protocol.limits import LARGEST_SHARE
from cairn.protocol.messages import JobSpec, Manifest
from cairn.protocol.statistics import MIN_CELL
from cairn.protocol.words import CONTENTS, ENCODINGS, OPTIMIZERS, word_of
from cairn.tasks.accounting import PrivateSteps, epsilon_of
from cairn.tasks.settings import MAX_FAILURES, MAX_ROUNDS, PrivateSettings
from cairn.v1 import round_pb2 as pb
from owner_node.privacy_limit import PrivacyLimit

Ranges = Mapping[str, tuple[float, float]]


class Declined(CairnError):
    """This owner does not take part; the reason is all that the others learn."""

    def __init__(self, message: str, reason: "pb.Reason") -> None:
        super().__init__(message, reason)


@dataclass(frozen=True)
class Invited:
    """What an invitation says: a manifest that the aggregator signed, and the job it came with.

    `digest` is the manifest's, and the job's is the one that the manifest names.
    """

    manifest: Manifest
    digest: bytes
    job: JobSpec

    @property
    def ids(self) -> tuple[str, int]:
        """The job's name and the round's number."""
        return self.manifest.job, self.manifest.round


@dataclass(frozen=True)
class LastRound:
    """A round that this owner took part in."""

    round: int
    phase: int
    manifest_digest: bytes


@dataclass(frozen=True)
class JobHistory:
    """What this owner's ledger says of the job and of the task before the invitation.

    `last` is the last round of the job that it took part in and `release` the latest release of the
    job whose statement it has seen, as its round and the model's digest. `taken` is how many other rounds
    of the task and the phase it took part in, and `failures` in how many of the task it was not counted for
    a cause that may depend on its data, since the last reset. `told` is what noisy releases of the task, besides this
    one, have told of it, in zero-concentrated differential privacy. `private` is what its private trainings were
    allowed, in all jobs, and `next_private` what another is likely to ask for.
    """

    last: LastRound | None = None
    release: tuple[int, bytes] | None = None
    taken: int = 0
    failures: int = 0
    told: float = 0.0
    private: tuple[PrivateSteps, ...] = ()
    next_private: tuple[PrivateSteps, ...] = ()


@dataclass(frozen=True)
class TaskRules:
    """The allowed ranges of a task's settings, how updates may travel, and how often and how long it may run and fail.

    `max_rounds` holds for trainings, and as well for evaluations. `work_seconds` is the time that its work on the
    data takes in every round; None where that may show. `min_cell` is the smallest cell of statistics that may be
    released, and `max_statistics` how many times a column may leave for them (owner_node/statistics_policy.py). With
    `privacy`, only noisy releases may tell of the data. `private` is the budget of differential privacy for each
    record; None where there is none.
    """

    ranges: Ranges = field(default_factory=dict)
    max_rounds: int = MAX_ROUNDS
    encodings: frozenset["pb.Encoding"] = frozenset(ENCODINGS.values())
    contents: frozenset["pb.Content"] = frozenset(CONTENTS.values())
    rules: frozenset["pb.Rule"] = RULES_UNLESS_SAID
    optimizers: frozenset["pb.Optimizer"] = frozenset(OPTIMIZERS.values())
    max_failures: int = MAX_FAILURES
    work_seconds: float | None = None
    min_cell: int = MIN_CELL
    max_statistics: int = 1
    privacy: PrivacyLimit | None = None
    private: PrivateSettings | None = None


@dataclass(frozen=True)
class Policy:
    """The owner's rules, from its file. `trusted` has the owner itself; None where it trusts all."""

    federation: str
    owner: str
    floor: int
    tasks: Mapping[str, TaskRules]
    trusted: frozenset[str] | None = None
    largest_share: float = LARGEST_SHARE
    largest_model_bytes: int = 1 << 33

    def check(self, invited: Invited, known: JobHistory) -> None:
        """Raise InvalidMessage for an invitation that is not for us, Declined for one we refuse."""
        self._check_addressee(invited)
        self._check_cohort(invited.manifest)
        self._check_share(invited.manifest)
        _check_group(invited)
        _check_order(invited, known.last)
        _check_chain(invited.manifest, known.release)
        self._check_task(invited, known)

    def _check_addressee(self, invited: Invited) -> None:
        manifest, job = invited.manifest, invited.job
        if job.name != manifest.job:
            raise InvalidMessage("the invitation's job is not the one the aggregator signed for")
        if manifest.federation != self.federation or job.federation != self.federation:
            raise InvalidMessage("the invitation is for another federation")
        if manifest.weighting != job.weighting:
            raise InvalidMessage("the manifest weighs the updates in another way than its job")
        if manifest.aggregation != job.aggregation:
            raise InvalidMessage("the manifest combines the updates in another way than its job")
        if manifest.encoding not in {pb.ENCODING_WHOLE, job.encoding}:
            raise InvalidMessage("the manifest has updates travel in another way than its job")
        if self.owner not in manifest.cohort:
            raise InvalidMessage("the invitation's cohort does not have this owner")

    def _check_cohort(self, manifest: Manifest) -> None:
        if manifest.floor < self.floor or len(manifest.cohort) < manifest.floor:
            raise Declined(
                f"the floor of {manifest} is {manifest.floor}, this owner's file asks for"
                f" {self.floor}",
                pb.REASON_FLOOR_TOO_LOW,
            )
        if self.trusted is None:
            return
        strangers = sorted(set(manifest.cohort) - self.trusted)
        # The owners that drop out may all be trusted ones.
        if manifest.floor - len(strangers) < self.floor:
            raise Declined(
                f"an average of {manifest.floor} owners may be over only"
                f" {max(0, manifest.floor - len(strangers))} whom this owner's file trusts, and it asks"
                f" for {self.floor}; it does not trust {', '.join(strangers)}",
                pb.REASON_UNTRUSTED_COHORT,
            )

    def _check_share(self, manifest: Manifest) -> None:
        # With no more owners than the floor all count the same, whatever share one might have.
        share = max(manifest.largest_share, 1 / manifest.floor)
        if share > self.largest_share:
            raise Declined(
                f"in {manifest}, whose floor is {manifest.floor}, one update may count for {share:.3g} of the total"
                f" weight; this owner's file allows {self.largest_share:g} (largest_share): the aggregator's"
                " largest_share must be as small, and the floor at least one divided by it",
                pb.REASON_SETTING_REFUSED,
            )

    def _check_task(self, invited: Invited, known: JobHistory) -> None:
        job = invited.job
        rules = self.tasks.get(job.task)
        if rules is None:
            tasks = ", ".join(self.tasks) or "none"
            raise Declined(
                f"the job asks for the task {job.task}; this owner's file has {tasks}",
                pb.REASON_UNKNOWN_TASK,
            )
        if job.schema.total_bytes > self.largest_model_bytes:
            raise Declined(
                f"the job's model has {job.schema.total_bytes} bytes, this owner's file allows"
                f" {self.largest_model_bytes} (largest_model_megabytes)",
                pb.REASON_TOO_MUCH,
            )
        if job.statistics is None:  # which have none
            _check_settings(job, rules.ranges)
        _check_encoding(invited, rules.encodings)
        self._check_aggregation(invited, rules)
        _check_privacy(invited, rules.privacy, known.told)
        _check_budgets(invited, rules, known)
        if rules.private is not None:
            _check_private(invited, rules.private, known)

    def _check_aggregation(self, invited: Invited, rules: TaskRules) -> None:
        aggregation, task = invited.job.aggregation, invited.job.task
        for key, what, enum, value, allowed in (
            ("contents", "for", pb.Content, aggregation.content, rules.contents),
            ("rules", "for the rule", pb.Rule, aggregation.rule, rules.rules),
            (
                "optimizers",
                "for the optimizer",
                pb.Optimizer,
                aggregation.optimizer,
                rules.optimizers,
            ),
        ):
            if value not in allowed:
                words = ", ".join(sorted(word_of(enum, each) for each in allowed))
                raise Declined(
                    f"the job asks {what} {word_of(enum, value)}; this owner's file allows {words}. To allow it as well,"
                    f" list it in {key} below [tasks.{task}]",
                    pb.REASON_RULE_REFUSED,
                )
        manifest = invited.manifest
        averaged = aggregation.averages_over(len(manifest.cohort), manifest.floor)
        if manifest.trains and averaged < self.floor:
            raise Declined(
                f"by {aggregation}, an element of the release of {manifest} would be an average over {averaged}"
                f" owners; this owner's floor is {self.floor}",
                pb.REASON_RULE_REFUSED,
            )


def _check_privacy(invited: Invited, limit: PrivacyLimit | None, told: float) -> None:
    if limit is None:
        return
    manifest = invited.manifest
    refusal = limit.refusal(invited.job.aggregation, told, trains=manifest.trains)
    if refusal is not None:
        raise Declined(*refusal)


def _check_budgets(invited: Invited, rules: TaskRules, known: JobHistory) -> None:
    job = invited.job
    if known.failures >= rules.max_failures:
        raise Declined(
            f"{known.failures} rounds of the task {job.task} failed here for causes that may depend on this"
            f" owner's data, and its file allows {rules.max_failures} (max_failures): look into them, stop this"
            f" node and run `cairn reset` for {job.task}",
            pb.REASON_FAILURES_SPENT,
        )
    if job.rounds > rules.max_rounds:
        raise Declined(
            f"the job has {job.rounds} rounds; this owner allows {rules.max_rounds} of the task"
            f" {job.task}",
            pb.REASON_TOO_MANY_ROUNDS,
        )
    if known.taken >= rules.max_rounds:
        what = "trainings" if invited.manifest.trains else "evaluations"
        raise Declined(
            f"this owner took part in {known.taken} {what} of the task {job.task}, and its file allows"
            f" {rules.max_rounds} (max_rounds)",
            pb.REASON_TOO_MANY_ROUNDS,
        )


def _check_private(invited: Invited, private: PrivateSettings, known: JobHistory) -> None:
    """Decline what would leave without noise, and a training for which too little of the budget is left."""
    job = invited.job
    for is_asked, what, cure in (
        (job.aggregation.are_gradients, "asks for gradients", 'content = "weights" in the job\'s file'),
        (job.statistics is not None, "asks for statistics", "a task of its own for statistics"),
        (
            job.weighting == pb.WEIGHTING_EXAMPLES,
            "weighs by the number of examples",
            'weighting = "equal" in the job\'s file',
        ),
        (not invited.manifest.trains, "evaluates", "evaluate = false in the job's file"),
    ):
        if is_asked:
            raise Declined(
                f"the job {what}, which tells of single records without noise, and this owner's file asks for private"
                f" training of the task {job.task} (private): {cure} avoids that",
                pb.REASON_JOB_REFUSED,
            )
    epsilon = epsilon_of((*known.private, *known.next_private), private.delta)
    if epsilon > private.epsilon:
        raise Declined(
            f"another round as the last would make epsilon {epsilon:.3g} for the task {job.task}, and this owner's file"
            f" allows {private.epsilon:g} (private.epsilon)",
            pb.REASON_BUDGET_SPENT,
        )


def _check_group(invited: Invited) -> None:
    if not are_of_one_group(invited.job.groups, invited.manifest.cohort):
        raise Declined(
            f"the cohort of {invited.manifest} has owners of more than one group of the job",
            pb.REASON_MIXED_GROUPS,
        )


def _check_order(invited: Invited, last: LastRound | None) -> None:
    if last is None or invited.digest == last.manifest_digest:
        return
    manifest = invited.manifest
    if (manifest.round, int(manifest.phase)) <= (last.round, last.phase):
        raise Declined(
            f"{manifest} is not newer than round {last.round}, in which this owner took part",
            pb.REASON_STALE_ROUND,
        )


def _check_chain(manifest: Manifest, release: tuple[int, bytes] | None) -> None:
    """Whether the base is the job's last release, by the manifest and by what this owner has seen.

    A later release than the one it has seen may be behind a later round, but not behind the next.
    """
    previous = manifest.previous_release_digest
    if previous and manifest.base_digest != previous:
        raise Declined(f"the base of {manifest} is not the last release", pb.REASON_CHAIN_BROKEN)
    if release is None:
        return
    number, digest = release
    follows = manifest.round <= number + 1
    if not previous or (follows and previous != digest):
        raise Declined(
            f"{manifest} does not go on from the release of round {number}, which this owner has seen",
            pb.REASON_CHAIN_BROKEN,
        )


def _check_encoding(invited: Invited, allowed: frozenset["pb.Encoding"]) -> None:
    manifest = invited.manifest
    if manifest.trains and manifest.encoding not in allowed:
        raise Declined(
            f"the updates of {manifest} travel as {word_of(pb.Encoding, manifest.encoding)}; this owner's file"
            f" allows {', '.join(sorted(word_of(pb.Encoding, each) for each in allowed))} for the task {invited.job.task}",
            pb.REASON_ENCODING_REFUSED,
        )


def _check_settings(job: JobSpec, ranges: Ranges) -> None:
    """A setting that is missing would have the task fail, which is counted against the task."""
    for key in sorted(ranges.keys() - job.settings.keys()):
        raise Declined(
            f"the job does not set {key}, which this owner's file lists in tasks.{job.task}.settings; set it in"
            " the job's file",
            pb.REASON_SETTING_REFUSED,
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
