"""Runs one round of a task in this process: base in, update out, whatever the task does checked."""

import mmap
import random
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from cairn.errors import UsageError
from cairn.model.exchanged import Exchanged
from cairn.model.schema import Schema
from cairn.protocol.statistics import Statistics
from cairn.tasks.accounting import check_installed
from cairn.tasks.columns import write_counts
from cairn.tasks.counted import checked_examples, checked_metrics
from cairn.tasks.first_model import built
from cairn.tasks.gradients import forget_gradients, write_gradients
from cairn.tasks.kept import KeptValues, write_kept
from cairn.tasks.loader import TaskFailed, task_code
from cairn.tasks.partial import StateSplit, split_of, trained_part
from cairn.tasks.private import Privacy
from cairn.tasks.state_dict import (
    WritableBuffer,
    read_state,
    schema_of,
    write_state,
)
from cairn.tasks.task import Data, Round, Site, Task
from cairn.v1 import round_pb2 as pb

F = TypeVar("F")
Function = Callable[[nn.Module, Any, Round], Mapping[str, float] | None]


@dataclass(frozen=True)
class Outcome:
    """What leaves the site besides tensors."""

    examples: int
    metrics: dict[str, float]


class TaskRunner:
    """A task at a site. It reads the data once, before the first round, and builds a model a round.

    It runs nothing on fewer than `min_examples` examples.
    """

    def __init__(self, task: Task, site: Site, min_examples: int = 1) -> None:
        self._task = task
        self._site = site
        self._min_examples = min_examples
        self._data: Data | None = None
        self._last: Callable[[], nn.Module | None] = lambda: None
        self._device = "cuda" if torch.cuda.is_available() else "cpu"

    def exchanged(self) -> Exchanged:
        """Build a model, look at what of it is shared, and drop it. Raises TaskFailed.

        The models of the rounds are built from the same random numbers as if this had not been.
        """
        states = random.getstate(), np.random.get_state()  # noqa: NPY002 - what a task may have seeded
        try:
            with torch.random.fork_rng(devices=[]):
                return self._built()[1]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002

    def train(
        self,
        this: Round,
        schema: Schema,
        base: WritableBuffer,
        update: WritableBuffer,
        kept: KeptValues | None = None,
        privacy: Privacy | None = None,
    ) -> Outcome:
        """Train from `base`, and write what came out to `update`, and of what is kept to `kept`. Raises TaskFailed.

        The base is this process's own: a model may keep it, and train it. The update may lie in the memory of which
        the base is a private mapping. The values are not looked at. Without `kept` what the task keeps begins as
        `model()` returns it, and ends here. With `privacy` the task must train by `cairn.private`; its metrics are without noise
        all the same.
        """
        train = _asked_for("train", self._task.train)
        # First: for another model no data is read.
        model = self._loaded_model(schema, base, kept).train()
        with _privately(privacy, model):
            outcome = self._worked("train", train, model, this)
        _write_weights(self._task, model, schema, update)
        if kept is not None:
            write_kept(self._task, model, kept)
        return outcome

    def gradients(
        self,
        this: Round,
        schema: Schema,
        base: WritableBuffer,
        update: WritableBuffer,
        kept: KeptValues | None = None,
    ) -> Outcome:
        """Write the gradient of the task's loss at `base` to `update`, and what is kept to `kept`. Raises TaskFailed.

        The memory is as in `train`.
        """
        gradients = _asked_for("gradients", self._task.gradients)
        model = self._loaded_model(schema, base, kept, gradients=True).train()
        forget_gradients(model)
        outcome = self._worked("gradients", gradients, model, this)
        write_gradients(model, schema, update)
        if kept is not None:
            write_kept(self._task, model, kept)
        return outcome

    def evaluate(
        self,
        this: Round,
        schema: Schema,
        base: WritableBuffer,
        kept: KeptValues | None = None,
        *,
        gradients: bool = False,
    ) -> Outcome:
        """Evaluate `base`, which is this process's own, with what is `kept`, in a job of gradients or of weights.

        Raises TaskFailed.
        """
        if self._task.evaluate is None:
            raise TaskFailed(
                "the job evaluates and the task has no evaluate function;"
                " pass one: cairn.Task(..., evaluate=evaluate)",
                pb.REASON_JOB_REFUSED,
            )
        model = self._loaded_model(schema, base, kept, gradients=gradients).eval()
        data = self._read_data()
        examples = self._checked_examples("test_examples", data.test_examples)
        with task_code("evaluate"), torch.no_grad():
            returned = self._task.evaluate(model, data, replace(this, device=self._device))
        return Outcome(examples, checked_metrics("evaluate", returned))

    def statistics(self, statistics: Statistics, update: WritableBuffer) -> Outcome:
        """Write what the job counts to `update`, which is of its schema. Raises TaskFailed."""
        columns = _asked_for("columns", self._task.columns)
        data = self._read_data()
        examples = self._checked_examples("examples", data.examples)
        with task_code("columns"):
            returned = columns(data)
        write_counts(statistics, returned, examples, update)
        return Outcome(examples, {})

    def _worked(self, part: str, function: Function, model: nn.Module, this: Round) -> Outcome:
        data = self._read_data()
        examples = self._checked_examples("examples", data.examples)
        with task_code(part):
            returned = function(model, data, replace(this, device=self._device))
        return Outcome(examples, checked_metrics(part, returned))

    def _checked_examples(self, field: str, value: Any) -> int:
        examples = checked_examples(field, value)
        if examples < self._min_examples:
            raise TaskFailed(
                f"the task's data has {field} = {examples}, and this owner's file asks for at least"
                f" {self._min_examples} (min_examples)",
                pb.REASON_TOO_FEW_EXAMPLES,
            )
        return examples

    def _read_data(self) -> Data:
        if self._data is None:
            with task_code("data"):
                data = self._task.data(self._site)
            if not isinstance(data, Data):
                raise TaskFailed(
                    f"the task's data returned {type(data).__name__}, expected cairn.Data(...)"
                )
            self._data = data
        return self._data

    def _built(self) -> tuple[nn.Module, Exchanged]:
        """A new model, and which of its entries are shared, private and kept."""
        model = built(self._task)
        try:
            split = split_of(self._task, model)
            return model, Exchanged(
                schema_of(split.shared),
                frozenset(split.private),
                schema_of(split.kept, "kept") if split.kept else None,
                _trained(self._task, split, model),
                gives_weights=self._task.train is not None,
                gives_gradients=self._task.gradients is not None,
                gives_statistics=self._task.columns is not None,
            )
        except UsageError as error:
            raise TaskFailed(str(error), pb.REASON_SCHEMA_MISMATCH) from None

    def has_a_model(self) -> bool:
        """Whether the model of the last round is still there: the task keeps it, or it is part of a cycle."""
        return self._last() is not None

    def _loaded_model(
        self,
        schema: Schema,
        base: WritableBuffer,
        kept: KeptValues | None,
        *,
        gradients: bool = False,
    ) -> nn.Module:
        """Build the model and load the base, and what is kept.

        A model may keep the tensors that it loads. A tensor keeps the array that it was made from, and so do its
        views: where the array outlives the loading, each page is written to, which makes it this process's own.
        """
        model, exchanged = self._built()
        self._last = weakref.ref(model)
        if why := exchanged.why_not(schema, gradients=gradients):
            raise TaskFailed(why, pb.REASON_SCHEMA_MISMATCH)
        if kept is not None and kept.schema != exchanged.kept:
            raise TaskFailed(
                "the task keeps other tensors than when the round began", pb.REASON_SCHEMA_MISMATCH
            )
        model.to(self._device)
        handed = np.asarray(base).view()
        is_held = weakref.ref(handed)
        _load(model, read_state(schema, handed) | (kept.read() if kept is not None else {}))
        del handed
        if (held := is_held()) is not None:
            pages = held[:: mmap.PAGESIZE]
            np.bitwise_or(pages, 0, out=pages)
        return model


def _privately(privacy: Privacy | None, model: nn.Module) -> AbstractContextManager[None]:
    """Have `cairn.private` work inside where the owner asks for it. Raises TaskFailed."""
    if privacy is None:
        return nullcontext()
    try:
        check_installed()
    except UsageError as error:
        raise TaskFailed(str(error)) from None
    from cairn.tasks.private_training import PrivateTraining

    return PrivateTraining(privacy, model).under_way()


def _asked_for(part: str, function: F | None) -> F:
    if function is None:
        raise TaskFailed(
            f"the task has no {part} function, which the job asks for;"
            f" pass one: cairn.Task(..., {part}={part})",
            pb.REASON_JOB_REFUSED,
        )
    return function


def _trained(task: Task, split: StateSplit, model: nn.Module) -> frozenset[str]:
    """The names of what a job of gradients exchanges; none where the task has no part in one."""
    if task.gradients is None:
        return frozenset()
    return frozenset(trained_part(split, model).shared)


def _load(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Load exactly these entries; the others stay what they are."""
    with task_code("model's load_state_dict"):
        loaded = model.load_state_dict(values, strict=False)
    if wrong := [*loaded.unexpected_keys, *(values.keys() & {*loaded.missing_keys})]:
        raise TaskFailed(f"the task's model does not load {wrong[0]}, which its state_dict has")


def _write_weights(task: Task, model: nn.Module, schema: Schema, update: WritableBuffer) -> None:
    try:
        state = split_of(task, model).shared
        difference = schema.difference(schema_of(state))
    except UsageError as error:
        raise TaskFailed(str(error), pb.REASON_WRONG_TENSORS) from None
    if difference:
        raise TaskFailed(
            f"training changed the model's tensors: {difference}", pb.REASON_WRONG_TENSORS
        )
    write_state(state, schema, update)
