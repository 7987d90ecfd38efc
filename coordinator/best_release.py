"""Which release of a job is its best so far, and when a job has waited long enough for a better one. Pure.

A release is judged by one metric of its own evaluation, the average over the owners that were counted there. A
metric of a training is none that could judge it: it describes models of single owners before they were averaged.
A round without the metric is not judged: it changes nothing, and does not count against the patience either. Only where no
round had it before, the job stops.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from cairn.config import Settings
from cairn.errors import CairnError, UsageError
from cairn.tasks.settings import MetricName

Better = Literal["higher", "lower"]


class BestSettings(Settings):
    """How the best release of a job is found, and when the job ends because none is better.

    `better` says which values of the `metric` are. After `patience` judged rounds in a row that brought no gain
    of `min_delta` the job ends; without a `patience` it has all its rounds.
    """

    metric: MetricName
    better: Better
    patience: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0

    @model_validator(mode="after")
    def _check_min_delta(self) -> "BestSettings":
        if self.patience is None and "min_delta" in self.model_fields_set:
            raise ValueError(
                "min_delta is the gain that a job waits for, and does nothing without patience: add patience,"
                " or leave min_delta out. The best release is always the one with the best value"
            )
        return self


@dataclass(frozen=True)
class BestSoFar:
    """The `round` of the best release and its `value`, and how long the job has waited for a gain.

    `waited` counts the judged rounds since the last one that was better than the `mark` before by `min_delta`;
    its value is the new mark. Gains that are too small add up until they are a gain, because the mark stays.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    metric: str
    better: Better
    round: int
    value: float
    mark: float
    waited: int = 0


def judged(rule: BestSettings, best: BestSoFar | None, number: int, value: float) -> BestSoFar:
    """The best after the release of round `number` was found to have this finite value; of equals the first."""
    if best is None:
        return BestSoFar(rule.metric, rule.better, number, value, mark=value)
    if _gain(rule, value, best.value) > 0:
        best = replace(best, round=number, value=value)
    gain = _gain(rule, value, best.mark)
    if gain > 0 and gain >= rule.min_delta:
        return replace(best, mark=value, waited=0)
    return replace(best, waited=best.waited + 1)


def has_waited_enough(rule: BestSettings, best: BestSoFar | None) -> bool:
    """Whether the job ends without its other rounds."""
    return best is not None and rule.patience is not None and best.waited >= rule.patience


def check_same_metric(rule: BestSettings | None, best: BestSoFar | None, folder: object) -> None:
    """Raise UsageError where the run in the folder has judged its releases by another metric.

    Another patience or min_delta is none: it counts from the next round on.
    """
    if rule is None or best is None:
        return
    if (rule.metric, rule.better) != (best.metric, best.better):
        raise UsageError(
            f'{folder} has judged its releases by best.metric = "{best.metric}" with better = "{best.better}":'
            " write these again, or choose another --out, where the judging starts anew"
        )


def check_is_measured(
    rule: BestSettings, best: BestSoFar | None, number: int, measured: Mapping[str, float]
) -> None:
    """Raise CairnError where the first evaluation of a job, that of this round, has other metrics alone.

    Else a misspelt name would be found out after all rounds.
    """
    if best is not None or rule.metric in measured:
        return
    others = f"it has {', '.join(sorted(measured))}" if measured else "it has no metric"
    raise CairnError(
        f"the evaluation of round {number} has no {rule.metric}, by which best.metric has releases judged; {others}."
        " Correct best.metric in the job's file, or have every owner's task report it and every owner's file list it"
        " (metrics); then run this again: the job goes on from its checkpoint"
    )


def _gain(rule: BestSettings, value: float, other: float) -> float:
    return value - other if rule.better == "higher" else other - value
