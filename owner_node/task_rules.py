"""What this owner allows of a job for one of its tasks. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cairn.protocol.aggregation import RULES_UNLESS_SAID
from cairn.protocol.messages import JobSpec
from cairn.protocol.statistics import MIN_CELL
from cairn.protocol.words import CONTENTS, ENCODINGS, OPTIMIZERS, word_of
from cairn.tasks.accounting import epsilon_of
from cairn.tasks.settings import MAX_FAILURES, MAX_ROUNDS, PrivateSettings
from cairn.v1 import round_pb2 as pb
from owner_node.invitation import Declined, Invited, JobHistory
from owner_node.privacy_limit import PrivacyLimit

Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class TaskRules:
    """The allowed ranges of a task's settings, how updates may travel, and how often and how long it may run and fail.

    `max_rounds` holds for trainings, and as well for evaluations. `work_seconds` is the time that its work on the
    data takes in every round; None where that may show. `min_cell` is the smallest cell of statistics that may be
    released, and `max_statistics` how many times a column may leave for them (owner_node/statistics_rules.py). With
    `privacy_limit`, only noisy releases may tell of the data. `private` is the budget of differential privacy for each
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
    privacy_limit: PrivacyLimit | None = None
    private: PrivateSettings | None = None


def check_task(rules: TaskRules, invited: Invited, known: JobHistory) -> None:
    """Raise Declined where the task's rules do not allow what the job asks of it."""
    if invited.job.statistics is None:  # which have none
        _check_settings(invited.job, rules.ranges)
    _check_encoding(invited, rules.encodings)
    _check_lists(invited, rules)
    _check_privacy(invited, rules.privacy_limit, known.told)
    _check_budgets(invited, rules, known)
    if rules.private is not None:
        _check_private(invited, rules.private, known)


def _check_lists(invited: Invited, rules: TaskRules) -> None:
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
        (
            job.aggregation.are_gradients,
            "asks for gradients",
            'content = "weights" in the job\'s file',
        ),
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
