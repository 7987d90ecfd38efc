"""Runs one round of a task in this process: base in, update out, whatever the task does checked."""

import math
import mmap
import operator
import random
import sys
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from cairn.errors import UsageError
from cairn.model.exchanged import Exchanged
from cairn.model.schema import Schema
from cairn.protocol.limits import MAX_EXAMPLES, MAX_METRIC_NAME_BYTES, MAX_METRICS
from cairn.tasks.kept import KeptValues
from cairn.tasks.loader import TaskFailed, task_code
from cairn.tasks.partial import StateSplit, split_state
from cairn.tasks.scaffold import check_variates
from cairn.tasks.state_dict import (
    WritableBuffer,
    payload_of,
    read_state,
    schema_of,
    write_state,
)
from cairn.tasks.task import Data, Round, Site, Task
from cairn.v1 import round_pb2 as pb


@dataclass(frozen=True)
class Outcome:
    """What leaves the site besides tensors."""

    examples: int
    metrics: dict[str, float]


def first_model(task: Task, seed: int) -> tuple[Schema, bytearray]:
    """Build the model a job starts from: what the task exchanges of `first_split`.

    Raises TaskFailed where the task's code raises, UsageError for a model that cannot be averaged.
    """
    return payload_of(first_split(task, seed).shared)


def first_split(task: Task, seed: int) -> StateSplit:
    """Build `task.model()` after `torch.manual_seed(seed)`: its shared and its private entries.

    Raises as `first_model` does.
    """
    torch.manual_seed(seed)
    return _split(task, _built(task))


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
    ) -> Outcome:
        """Train from `base`, and write what came out to `update`, and of what is kept to `kept`. Raises TaskFailed.

        The base is this process's own: a model may keep it, and train it. The update may lie in the memory of which
        the base is a private mapping. The values are not looked at. Without `kept` what the task keeps begins as
        `model()` returns it, and ends here.
        """
        # First: for another model no data is read.
        model = self._loaded_model(schema, base, kept).train()
        data = self._read_data()
        examples = self._checked_examples("examples", data.examples)
        with task_code("train"):
            returned = self._task.train(model, data, replace(this, device=self._device))
        metrics = _checked_metrics("train", returned)
        _write_trained(self._task, model, (schema, update), kept)
        return Outcome(examples, metrics)

    def evaluate(
        self, this: Round, schema: Schema, base: WritableBuffer, kept: KeptValues | None = None
    ) -> Outcome:
        """Evaluate `base`, which is this process's own, with what is `kept`. Raises TaskFailed."""
        if self._task.evaluate is None:
            raise TaskFailed(
                "the job evaluates and the task has no evaluate function;"
                " pass one: cairn.Task(..., evaluate=evaluate)",
                pb.REASON_JOB_REFUSED,
            )
        model = self._loaded_model(schema, base, kept).eval()
        data = self._read_data()
        examples = self._checked_examples("test_examples", data.test_examples)
        with task_code("evaluate"), torch.no_grad():
            returned = self._task.evaluate(model, data, replace(this, device=self._device))
        return Outcome(examples, _checked_metrics("evaluate", returned))

    def _checked_examples(self, field: str, value: Any) -> int:
        examples = _checked_examples(field, value)
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
        model = _built(self._task)
        try:
            split = _split(self._task, model)
            kept = schema_of(split.kept, "kept") if split.kept else None
            return model, Exchanged(schema_of(split.shared), frozenset(split.private), kept)
        except UsageError as error:
            raise TaskFailed(str(error), pb.REASON_SCHEMA_MISMATCH) from None

    def has_a_model(self) -> bool:
        """Whether the model of the last round is still there: the task keeps it, or it is part of a cycle."""
        return self._last() is not None

    def _loaded_model(
        self, schema: Schema, base: WritableBuffer, kept: KeptValues | None
    ) -> nn.Module:
        """Build the model and load the base, and what is kept.

        A model may keep the tensors that it loads. A tensor keeps the array that it was made from, and so do its
        views: where the array outlives the loading, each page is written to, which makes it this process's own.
        """
        model, exchanged = self._built()
        self._last = weakref.ref(model)
        if why := exchanged.why_not(schema):
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


def _built(task: Task) -> nn.Module:
    with task_code("model"):
        model = task.model()
    if not isinstance(model, nn.Module):
        raise TaskFailed(
            f"the task's model returned {type(model).__name__}, expected a torch.nn.Module"
        )
    return model


def _split(task: Task, model: nn.Module) -> StateSplit:
    with task_code("model's state_dict"):
        state = model.state_dict()
    split = split_state(state, task.exchanges, task.keeps)
    check_variates(split)
    return split


def _load(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Load exactly these entries; the others stay what they are."""
    with task_code("model's load_state_dict"):
        loaded = model.load_state_dict(values, strict=False)
    if wrong := [*loaded.unexpected_keys, *(values.keys() & {*loaded.missing_keys})]:
        raise TaskFailed(f"the task's model does not load {wrong[0]}, which its state_dict has")


def _write_trained(
    task: Task,
    model: nn.Module,
    update: tuple[Schema, WritableBuffer],
    kept: KeptValues | None,
) -> None:
    schema, payload = update
    try:
        split = _split(task, model)
        difference = schema.difference(schema_of(split.shared))
        if kept is not None and not difference:
            difference = kept.schema.difference(schema_of(split.kept, "kept"))
    except UsageError as error:
        raise TaskFailed(str(error), pb.REASON_WRONG_TENSORS) from None
    if difference:
        raise TaskFailed(
            f"training changed the model's tensors: {difference}", pb.REASON_WRONG_TENSORS
        )
    write_state(split.shared, schema, payload)
    if kept is not None:
        kept.write(split.kept)


def _checked_examples(field: str, value: Any) -> int:
    try:
        examples = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        examples = 0
    if not 1 <= examples <= MAX_EXAMPLES:
        raise TaskFailed(
            f"the task's data has {field} = {value!r}, expected a whole number from 1 to"
            f" {MAX_EXAMPLES}",
            pb.REASON_EXAMPLES_REFUSED,
        )
    return examples


def _checked_metrics(part: str, returned: Any) -> dict[str, float]:
    if returned is None:
        return {}
    if not isinstance(returned, Mapping):
        raise TaskFailed(
            f"the task's {part} returned {type(returned).__name__}, expected scalars by name"
        )
    if len(returned) > MAX_METRICS:
        raise TaskFailed(f"the task's {part} returned more than {MAX_METRICS} metrics")
    metrics = {_metric_name(name): _metric_value(name, value) for name, value in returned.items()}
    for name, value in metrics.items():
        if not math.isfinite(value):
            print(f"the metric {name} is {value} and is left out", file=sys.stderr)  # noqa: T201  the owner's console
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _metric_name(name: Any) -> str:
    if isinstance(name, str):
        with suppress(UnicodeEncodeError):  # half a surrogate pair is no text
            if 1 <= len(name.encode()) <= MAX_METRIC_NAME_BYTES:
                return name
    raise TaskFailed(f"a metric is called {name!r}, expected 1 to {MAX_METRIC_NAME_BYTES} bytes")


def _metric_value(name: Any, value: Any) -> float:
    # Scalars of PyTorch and NumPy have no dimension and know their Python value.
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    try:
        if isinstance(number, int | float):
            return float(number)
    except OverflowError:
        return math.inf
    raise TaskFailed(f"the metric {name} is of type {type(value).__name__}, expected a number")
