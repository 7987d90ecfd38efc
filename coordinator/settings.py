"""The coordinator's TOML file, and the job's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from cairn.config import (
    AddressText,
    FilePath,
    ModelContentWord,
    Name,
    NodeLabel,
    OptimizerWord,
    PinnedIdentityFiles,
    RuleWord,
    Seconds,
    Settings,
    SigningKeyText,
)
from cairn.errors import UsageError
from cairn.protocol.aggregation import (
    NUMBERS,
    OPTIMIZER_NUMBERS,
    Aggregation,
    Number,
    check_aggregation,
    numbers_of,
)
from cairn.protocol.limits import MAX_COHORT, MAX_EXAMPLES, MIN_COHORT
from cairn.protocol.words import CONTENTS, ENCODINGS, OPTIMIZERS, RULES, WEIGHTINGS
from cairn.runtime.timeouts import GATHER_SECONDS, RECONNECT_TIMEOUT_SECONDS, ROUND_DEADLINE_SECONDS
from coordinator.best_release import BestSettings
from coordinator.groups import group_count
from coordinator.needed_owners import needed_in
from coordinator.statistics import StatisticsSettings

# All that the file of a job of statistics may say: it has no model, and one round.
_OF_STATISTICS = frozenset(
    {"name", "task", "owners", "floor", "round_deadline_seconds", "gather_seconds", "statistics"}
)
_Examples = Annotated[int, Field(ge=1, le=MAX_EXAMPLES)]


class CoordinatorSettings(Settings):
    """Everything a coordinator is told beside its job.

    `owners` are those that a job from Python invites where it names none; a job's file always does.
    `patience_seconds` is how long a peer that cannot be reached is waited for.
    """

    kind: ClassVar[str] = "a coordinator"
    federation: NodeLabel
    name: NodeLabel
    listen: AddressText
    aggregator: AddressText
    aggregator_signing_key: SigningKeyText
    owners: tuple[NodeLabel, ...] = ()
    patience_seconds: Seconds = RECONNECT_TIMEOUT_SECONDS
    identity: PinnedIdentityFiles


class _Chosen(Settings):
    """A rule or an optimizer: its name, and beside it its numbers.

    Without the whole table there is a default; a table without a name has lost it.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float] = Field(init=False)

    def numbers(self, known: Mapping[str, Number], name: str) -> dict[str, float]:
        """All of them. Raises ValueError with a sentence."""
        return numbers_of(known, self.model_extra or {}, name)


class RuleSettings(_Chosen):
    kind: ClassVar[str] = "a rule"
    name: RuleWord


class OptimizerSettings(_Chosen):
    kind: ClassVar[str] = "an optimizer"
    name: OptimizerWord


class JobSettings(Settings):
    """A training run.

    `model` is what it starts from: a .safetensors file, or a task's .py file whose `model()` is built
    after `torch.manual_seed(seed)`. `settings` are the numbers handed to the task. `evaluate` has the
    owners evaluate the release of every round. `examples` says as how many an update of fewer
    or more counts, the fewest and the most. `updates` is how the updates travel: "whole", or from the job's
    first release on as "bf16_deltas" in half the bytes or as "int8_deltas" in a quarter, which say the
    float32 and float64 tensors less exactly; an owner may not allow it. `content` is what the owners send: the
    "weights" that they have trained, or the "gradients" of their loss at the round's model. `rule` is a table with
    the name of the rule by which the aggregator combines what they send, and its numbers; `optimizer` one for the
    step from the round's model to the next. `fraction` is the least share of the owners that takes part in a
    round: with less than 1 they are divided by the `seed` into fixed groups, which take turns. `gather_seconds` is how long the job waits for owners that
    do not attend. With a table `statistics`, the job counts the owners' data instead of training a model, and has
    neither a `model` nor `rounds`.
    """

    kind: ClassVar[str] = "a job"
    name: Name
    task: Name
    model: FilePath | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] = 0  # what torch.manual_seed takes
    rounds: Annotated[int, Field(ge=1, le=1_000_000)]
    owners: Annotated[list[NodeLabel], Field(min_length=MIN_COHORT, max_length=MAX_COHORT)]
    floor: Annotated[int, Field(ge=MIN_COHORT, le=MAX_COHORT)] = 3
    fraction: Annotated[float, Field(gt=0, le=1)] = 1
    weighting: Literal["equal", "examples"] = "equal"
    examples: tuple[_Examples, _Examples] = (1, MAX_EXAMPLES)
    # The words of ENCODINGS of cairn.protocol.words.
    updates: Literal["whole", "bf16_deltas", "int8_deltas"] = "whole"
    content: ModelContentWord = "weights"
    rule: RuleSettings = RuleSettings(name="mean")
    optimizer: OptimizerSettings = OptimizerSettings(name="none")
    evaluate: bool = False
    round_deadline_seconds: Seconds = ROUND_DEADLINE_SECONDS
    gather_seconds: Seconds = GATHER_SECONDS
    # Which release is kept beside the last, and when the job stops early.
    best: BestSettings | None = None
    settings: dict[str, float] = Field(default_factory=dict)
    statistics: StatisticsSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_statistics(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "statistics" not in values:
            return values
        if others := sorted(values.keys() & cls.model_fields.keys() - _OF_STATISTICS):
            raise ValueError(
                f"a job of statistics counts data once and trains no model: take {', '.join(others)} out, or statistics"
            )
        return {**values, "rounds": 1}

    @model_validator(mode="after")
    def _check_model(self) -> "JobSettings":
        if self.model is None and self.statistics is None:
            raise ValueError("the key model is missing")
        return self

    @model_validator(mode="after")
    def _check_owners(self) -> "JobSettings":
        if len(set(self.owners)) != len(self.owners):
            raise ValueError("owners: each owner may stand there once")
        if self.floor > len(self.owners):
            raise ValueError(
                f"floor = {self.floor} is more than the {len(self.owners)} owners of the job: no"
                " round could ever be released"
            )
        return self

    @model_validator(mode="after")
    def _check_fraction(self) -> "JobSettings":
        if self.fraction == 1 or self.groups > 1:
            return self
        count = len(self.owners)
        said = f"fraction = {self.fraction:g} of {count} owners, with floor = {self.floor}, makes but one group"
        if count < 2 * self.floor:
            raise ValueError(
                f"{said}: two groups need {2 * self.floor} owners. Leave fraction out, so that all are"
                " invited to every round"
            )
        most = count // 2 * 100 // count / 100  # in a decimal that a person would write
        raise ValueError(f"{said}: write {most:g} or less, or leave it out to invite all")

    @model_validator(mode="after")
    def _check_private(self) -> "JobSettings":
        if self.aggregation.is_private and (self.evaluate or self.best is not None):
            key = "evaluate = true" if self.evaluate else "[best]"
            raise ValueError(
                f"{key}: a job by the rule {self.rule.name} has no metrics, because the noise that hides each owner is"
                " added to the model alone. Leave out evaluate and [best], and evaluate releases on data of your own"
            )
        return self

    @model_validator(mode="after")
    def _check_best(self) -> "JobSettings":
        if self.best is None:
            return self
        if not self.evaluate:
            raise ValueError(
                "best: a release is judged by its own evaluation, and this job has none: write evaluate = true."
                " The metrics of a training describe the owners' models before they are averaged, not the release"
            )
        if self.groups > 1:
            raise ValueError(
                f"best: with fraction = {self.fraction:g} each release is evaluated by one of {self.groups} groups, each"
                " on other data, so their values cannot be compared: leave out fraction, or best"
            )
        return self

    @model_validator(mode="after")
    def _check_examples(self) -> "JobSettings":
        low, high = self.examples
        if low > high:
            raise ValueError(f"examples = [{low}, {high}]: the fewest come first, then the most")
        if self.weighting == "examples" and "examples" not in self.model_fields_set:
            raise ValueError(
                'the key examples is missing: with weighting = "examples" it says as how many an update'
                " of fewer or more counts, for example examples = [10, 5000]. The aggregator limits how"
                " many times the fewest the most may be, by default 1000, so that no update outweighs the"
                " others"
            )
        return self

    @model_validator(mode="after")
    def _check_aggregation(self) -> "JobSettings":
        all_floats = True  # which only the model tells
        check_aggregation(
            self.aggregation,
            WEIGHTINGS[self.weighting],
            ENCODINGS[self.updates],
            all_floats=all_floats,
        )
        count, groups = len(self.owners), self.groups
        needed_in(self.aggregation, {count // groups, -(-count // groups)}, self.floor)
        return self

    @property
    def aggregation(self) -> Aggregation:
        """What becomes of the updates. Raises ValueError with a sentence."""
        if self.statistics is not None:
            return Aggregation(CONTENTS["statistics"], RULES["sum"])
        rule, optimizer = RULES[self.rule.name], OPTIMIZERS[self.optimizer.name]
        return Aggregation(
            CONTENTS[self.content],
            rule,
            self.rule.numbers(NUMBERS[rule], f"rule {self.rule.name}"),
            optimizer,
            self.optimizer.numbers(
                OPTIMIZER_NUMBERS[optimizer], f"optimizer {self.optimizer.name}"
            ),
        )

    @property
    def groups(self) -> int:
        """How many groups the owners are divided into; 1 where every round is of all."""
        return group_count(len(self.owners), self.fraction, self.floor)

    def changed(self, *, model: Path | None, rounds: int | None) -> "JobSettings":
        """The job with what the command line sets instead of the file. Raises UsageError where it has neither."""
        given = {"model": model, "rounds": rounds}
        update = {key: value for key, value in given.items() if value is not None}
        if update and self.statistics is not None:
            raise UsageError(
                f"the job {self.name} counts data and trains no model: leave --initial-model and --rounds out"
            )
        return self.model_copy(update=update)
