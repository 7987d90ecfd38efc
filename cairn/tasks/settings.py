"""A task in an owner's file: what the owner has approved, and what may leave of it. `cairn init` reads the same."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from cairn.config import (
    RULE_WORDS_UNLESS_SAID,
    ContentWord,
    FilePath,
    OptimizerWord,
    RuleWord,
    Settings,
)
from cairn.protocol.limits import (
    MAX_EXAMPLES,
    MAX_METRIC_NAME_BYTES,
    MAX_METRICS,
    MAX_ROUND_SECONDS,
)
from cairn.protocol.statistics import MIN_CELL
from cairn.tasks.accounting import LEAST_NOISE, MOST_NOISE

MAX_ROUNDS = 1000
MAX_FAILURES = 2
MAX_DELTA = 1e-5


def _task_source(text: str, info: ValidationInfo) -> str:
    """A path of a .py file, made relative to the TOML file, or "package.module:attribute"."""
    if ":" in text and not text.endswith(".py"):
        return text
    directory = (info.context or {}).get("directory", Path())
    return str(Path(directory) / Path(text).expanduser())


def _metric(name: str) -> str:
    if not 1 <= len(name.encode()) <= MAX_METRIC_NAME_BYTES:
        raise ValueError(f"a metric's name has 1 to {MAX_METRIC_NAME_BYTES} bytes")
    return name


TaskSourceText = Annotated[str, AfterValidator(_task_source)]
EncodingWord = Literal[
    "whole", "bf16_deltas", "int8_deltas"
]  # those of cairn.protocol.words.ENCODINGS
VariableName = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
MetricName = Annotated[str, AfterValidator(_metric)]


class PrivateSettings(Settings):
    """What a task may tell of one record of this owner's data: `epsilon` at `delta`, over all rounds and jobs.

    The task must train by `cairn.private`, which clips the gradient of each record to the L2 norm `clip` and adds noise
    of `noise` times `clip` to their sum in every step. A round that would go beyond `epsilon` is declined, as the
    ledger counts what was trained.
    """

    epsilon: Annotated[float, Field(gt=0, le=1000)]
    delta: Annotated[float, Field(gt=0, le=0.1)]
    noise: Annotated[float, Field(ge=LEAST_NOISE, le=MOST_NOISE)]
    clip: Annotated[float, Field(gt=0, le=1e30)]


class TaskSettings(Settings):
    """A task this owner has read and approved, and what may leave of it.

    `settings` says, for each number a job may set, the smallest and the largest this owner allows.
    `metrics` lists the metrics that may leave; any other that the task returns is dropped.
    `min_examples` is the fewest examples that what leaves must stand for, in training and in evaluation.
    `max_rounds` is in how many trainings of this task this owner takes part, over all jobs, as its ledger
    counts them from the moment it joins, and in how many evaluations. `max_failures` is in how many of these
    rounds it may end as not counted for a cause that may depend on its data; then it declines the task until
    `cairn reset`. `work_seconds` is the time that the work on the data takes in every round, whatever the data
    is: what comes of it leaves so many seconds after the base has arrived, and work that is not done by then is
    such a failure. `clip` is the longest way, as the L2 norm over all floating-point tensors
    together, by which an update may differ from its base, or the largest norm of a gradient; a longer one is scaled
    down to it, before it is encoded. `encodings` lists how updates may travel: "whole", or as deltas, which are smaller and say
    a little less. A job that asks for deltas has its updates travel whole until the aggregator has a base.
    `contents` lists what may leave, "weights", "gradients" or "statistics"; `rules` and `optimizers` what a job may have the
    aggregator make of it. `min_cell` is the fewest examples that a cell of released statistics must have, and
    `max_statistics` how many times each column of the task may leave for statistics, over all jobs.
    With `max_epsilon` only trainings by the rule "private_mean" are taken part in: of jobs that may
    tell no more of one owner than that epsilon, at `max_delta`, and as long as all releases of the task together,
    whatever their jobs are called, tell no more of this owner.
    With `private` the task trains with differential privacy for each record (see PrivateSettings). As nothing else that
    depends on the data may leave then, `metrics` must be empty, evaluations are declined, and so are jobs that ask for
    gradients or statistics or weigh by examples.
    `environment` names the environment variables of this node that the task gets beside the harmless ones
    that every task gets. With `sandbox = "on"` the task has no network and can read only its file, its data,
    the libraries and what `sandbox_reads` lists, and write only to a temporary directory of its own; a machine
    that cannot hold it to that does not start the node.
    """

    file: TaskSourceText
    data: FilePath
    settings: dict[str, tuple[float, float]] = Field(default_factory=dict)
    metrics: Annotated[tuple[MetricName, ...], Field(max_length=MAX_METRICS)] = ()
    min_examples: Annotated[int, Field(ge=1, le=MAX_EXAMPLES)] = 1
    max_rounds: Annotated[int, Field(ge=1)] = MAX_ROUNDS
    max_failures: Annotated[int, Field(ge=1)] = MAX_FAILURES
    work_seconds: Annotated[float, Field(gt=0, le=MAX_ROUND_SECONDS)] | None = None
    clip: Annotated[float, Field(gt=0, le=1e30)] | None = None
    encodings: Annotated[tuple[EncodingWord, ...], Field(min_length=1)] = get_args(EncodingWord)
    contents: Annotated[tuple[ContentWord, ...], Field(min_length=1)] = get_args(ContentWord)
    rules: Annotated[tuple[RuleWord, ...], Field(min_length=1)] = RULE_WORDS_UNLESS_SAID
    optimizers: Annotated[tuple[OptimizerWord, ...], Field(min_length=1)] = get_args(OptimizerWord)
    min_cell: Annotated[int, Field(ge=2, le=MAX_EXAMPLES)] = MIN_CELL
    max_statistics: Annotated[int, Field(ge=1)] = 1
    max_epsilon: Annotated[float, Field(gt=0, le=1e3)] | None = None
    max_delta: Annotated[float, Field(ge=1e-12, le=1e-2)] = MAX_DELTA
    private: PrivateSettings | None = None
    environment: tuple[VariableName, ...] = ()
    sandbox: Literal["off", "on"] = "off"
    sandbox_reads: tuple[FilePath, ...] = ()

    @model_validator(mode="after")
    def _check_ranges(self) -> "TaskSettings":
        for key, (low, high) in self.settings.items():
            if not low <= high:
                raise ValueError(f"settings.{key} = [{low:g}, {high:g}]: the smaller comes first")
        if self.private is not None and self.metrics:
            raise ValueError(
                f"metrics lists {self.metrics[0]} beside private: a metric of private data has no noise and would tell"
                " of single records; write metrics = []"
            )
        if self.sandbox_reads and self.sandbox == "off":
            raise ValueError('sandbox_reads has no effect without sandbox = "on"')
        if "max_delta" in self.model_fields_set and self.max_epsilon is None:
            raise ValueError("max_delta has no effect without max_epsilon")
        if self.max_epsilon is not None and "private_mean" not in self.rules:
            raise ValueError(
                'max_epsilon allows the rule "private_mean" alone, and rules leaves it out'
            )
        return self
