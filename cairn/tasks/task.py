"""What an owner writes: a task, which is a few plain functions. Imports no torch.

    def model(): ...                    the architecture, without weights
    def data(site): ...                 the private data, read once per process
    def train(model, data, round): ...  any PyTorch loop on the model it is given
    def evaluate(model, data, round): ...
    def gradients(model, data, round):  instead of train, in a job of gradients
        loss(model, data).backward()
    def columns(data): ...              in a job of statistics: {"age": an array, ...}

    task = cairn.Task(model=model, data=data, train=train, evaluate=evaluate)

The framework loads the round's weights into the model before it calls `train` or `evaluate`, and reads
`model.state_dict()` afterwards, or the `grad` of its parameters, so a task never touches a state_dict. The model's tensors may lie in memory that
the owner's process reads, so they can be changed but not resized. What a task keeps of them stays as it was when the
round ended; that costs a copy.

A task may exchange a part of its model only: adapters, a head, everything but the BatchNorm layers.

    task = cairn.Task(model=model, data=data, train=train, exchanges=("*.lora_*", "head.*"))

Or it may keep a part of it from round to round, for itself: layers that fit its own data (FedBN, FedPer).

    task = cairn.Task(model=model, data=data, train=train, keeps=("*.norm.*",))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Site:
    """Where a task runs: the owner's name and the data path of the owner's own file."""

    name: str
    data: Path


@dataclass(frozen=True)
class Data:
    """An owner's data. `train` and `test` are handed to the task as they are, whatever their type.

    `examples` counts the training examples and `test_examples` those that `evaluate` uses; in a job
    weighted by examples they say how much this owner counts, so they are fixed here, once.
    """

    train: Any
    examples: int
    test: Any = None
    test_examples: int = 0


@dataclass(frozen=True)
class Round:
    """The round a task runs in: the job's name, the round's number from 1, and the job's numbers.

    `settings` holds what the job set, each within this owner's ranges. `device` is where the model is:
    "cuda" when there is one, else "cpu"; the task moves its batches there.
    """

    job: str
    number: int
    settings: Mapping[str, float]
    device: str = "cpu"


@dataclass(frozen=True)
class Task:
    """The functions of a task, bound together. Each is called in a process of its own.

    `train`, `evaluate` and `gradients` return scalars by name, or nothing; the aggregator averages them.

    A job asks for weights or for gradients, and a task has `train`, `gradients` or both. `gradients` computes a
    loss of the round's model, calls `backward()` on it and changes no weight: what lies in the `grad` of the
    parameters is what leaves, and the aggregator's optimizer steps along its average (FedSGD: McMahan et al. 2017,
    arXiv 1602.05629). The model then consists of those exchanged entries that are parameters with
    `requires_grad`; buffers and frozen parameters are private, unless `keeps` names them. A parameter without a
    `grad` counts as zeros, and a sparse gradient is made dense. A tied parameter has one gradient, which leaves
    under each of its names.

    `columns` takes the task's data and returns the columns that a job of statistics may count, by name: arrays or
    tensors of one value for each training example, NaN where it is missing. Sums of them leave, above the floor and
    without small cells (docs/statistics.md); a task without it has no part in such a job.

    `exchanges` says which entries of `model.state_dict()` travel, buffers included: names, or patterns
    as a shell has them, in which * stands for any text, dots too. A pattern after "!" takes entries
    out again: ("*", "!*.norm.*"). None is all of them. The job's model, the update and the release
    then consist of these entries alone.

    The other entries never leave, and nothing keeps them: a round begins with what `model()` returns,
    and what training makes of them ends with the round. So `model()` must give them the same values
    every time and at every owner: from a file, or after a seed.

    `keeps` names, by patterns of the same kind, entries that stay at this owner and last: a round begins with what
    the rounds before it made of them here, and so does an evaluation. That is FedBN (Li et al. 2021, arXiv
    2102.07623) where it names the BatchNorm layers, and FedPer (Arivazhagan et al. 2019, arXiv 1912.00818) where
    it names the last ones. What is kept is not exchanged, also where `exchanges` names it. Each must be of a type
    that can travel.

    Kept tensors go with the job's model. They change when a release counts this owner's update, and only then: of
    a round that was aborted, that failed here or that did not count this owner they are as they were before it,
    as its part of the model is. They belong to one task and one job: a job of another name begins with what
    `model()` returns, and so does the first round of each. They are in the owner's state directory, readable by
    its account alone, until `cairn reset --kept` drops them.
    """

    model: Callable[[], "nn.Module"]
    data: Callable[[Site], Data]
    train: Callable[["nn.Module", Any, Round], Metrics | None] | None = None
    evaluate: Callable[["nn.Module", Any, Round], Metrics | None] | None = None
    gradients: Callable[["nn.Module", Any, Round], Metrics | None] | None = None
    columns: Callable[[Any], Mapping[str, Any]] | None = None
    exchanges: Sequence[str] | None = None
    keeps: Sequence[str] | None = None
