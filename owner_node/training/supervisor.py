"""Keeps the owner's training process: starts it, gives it work, and notices when it dies.

The task's code runs there and nowhere else. This module imports no torch.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from cairn.model.exchanged import Exchanged
from cairn.model.schema import Schema
from cairn.protocol.statistics import Statistics
from cairn.tasks.loader import TaskFailed
from owner_node.training.child import Child, TaskSource, end, kill, spawn
from owner_node.training.ipc import (
    ModelMemory,
    kept_message,
    schema_message,
    statistics_message,
    told_of_model,
)

__all__ = ["TaskFailed", "TaskSource", "Trained", "TrainingSupervisor", "Work"]

T = TypeVar("T")


@dataclass(frozen=True)
class PrivateWork:
    """A training must be private, with this noise and clipping norm; `spend` is asked before each loop, and says why not."""

    noise: float
    clip: float
    spend: Callable[[Any], str]


@dataclass(frozen=True)
class Work:
    """What a round asks of the task.

    With `in_place` the update takes the base's place: the base is not there any more afterwards. In a job of
    `gradients` the update is a gradient, and the schema that of what is trained; with `statistics` it is their counts,
    and the schema that of these. `kept` is what the task keeps, if
    anything; it begins with what lies in `kept_buffer` only where `begins_with_kept`. Only a training can be `private`.
    """

    job: str
    round: int
    phase: Literal["train", "evaluate"]
    settings: Mapping[str, float]
    schema: Schema
    in_place: bool = False
    gradients: bool = False
    statistics: Statistics | None = None
    kept: Schema | None = None
    begins_with_kept: bool = False
    private: PrivateWork | None = None


@dataclass(frozen=True)
class Trained:
    """What came out. `payload` is valid until the next run, and empty after an evaluation."""

    payload: memoryview
    examples: int
    metrics: dict[str, float]


class TrainingSupervisor:
    """The training process of one task, started anew whenever it is needed and not there."""

    def __init__(self, owner: str, source: TaskSource) -> None:
        self._owner = owner
        self._source = source
        self._lock = threading.Lock()  # over the three fields that `cancel` shares with `run`
        self._child: Child | None = None
        self._running = False
        self._cancelled = False
        self._memory: ModelMemory | None = None
        self._kept: ModelMemory | None = None
        self._base_digest: bytes | None = None  # of what was put into that memory

    def start(self) -> None:
        """Start the process and return at once: it imports PyTorch and the task meanwhile."""
        with self._lock:
            self._live_child()

    def model(self, is_over: Callable[[], bool] = lambda: False) -> Exchanged:
        """What the task's model exchanges; waits until the process has said so.

        Nothing is fetched and no memory taken for it. Raises TaskFailed as `run` does.
        """
        model = self._answered(_told_of_model, is_over).model
        if isinstance(model, Exchanged):
            return model
        raise TaskFailed(model["text"], model["reason"])

    def base_buffer(self, schema: Schema) -> memoryview:
        """Where the base belongs before `run`, and where it is afterwards, unless the update took its place.

        The same memory for every round of a schema.
        """
        return self._memory_of(schema).base

    def kept_buffer(self, schema: Schema) -> memoryview:
        """Where the kept tensors belong before `run`, and where a training leaves what it made of them."""
        return self._kept_memory_of(schema).base

    def keep_base(self, digest: bytes) -> None:
        """The base that now lies in the memory is the good model of this digest."""
        self._base_digest = digest

    def has_base(self, schema: Schema, digest: bytes) -> bool:
        """Whether the memory still holds this model, which was kept before.

        The bytes are hashed again: the task may have written to them, or a transfer that broke off.
        """
        base = self._memory_of(schema).base
        return self._base_digest == digest and schema.digest(base) == digest

    def run(self, work: Work, is_over: Callable[[], bool] = lambda: False) -> Trained:
        """Do the work and wait for it. Raises TaskFailed, also where the process died or was killed.

        `is_over` is asked once `cancel` has an effect: whoever cancels makes it true first.
        """
        memory = self._memory_of(work.schema)
        kept = self._kept_memory_of(work.kept) if work.kept is not None else None
        if work.in_place:
            self._base_digest = None
        answer = self._answered(lambda child: _ask(child, memory, kept, work), is_over)
        if "reason" in answer:
            raise TaskFailed(answer["text"], answer["reason"])
        payload = memory.base if work.in_place else memory.update
        if work.phase == "evaluate":
            payload = payload[:0]
        return Trained(payload, answer["examples"], answer["metrics"])

    def cancel(self) -> None:
        """End the run that is under way in another thread, if one is: it raises TaskFailed."""
        with self._lock:
            if self._running and self._child is not None:
                self._cancelled = True
                kill(self._child)

    def close(self) -> None:
        """End the process and give its memory back."""
        self.cancel()
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            end(child)
        for memory in (self._memory, self._kept):
            if memory is not None:
                memory.close()
        self._memory = self._kept = None

    def _answered(self, ask: Callable[[Child], T | None], is_over: Callable[[], bool]) -> T:
        """What the process answers. Raises TaskFailed where it is gone, or `is_over` when it is to begin."""
        with self._lock:
            if is_over():
                raise TaskFailed("the training was cancelled")
            child = self._live_child()
            self._running, self._cancelled = True, False
        try:
            answer = ask(child)
        finally:
            with self._lock:
                self._running = False
        if answer is None:
            raise TaskFailed(self._bury(child))
        return answer

    def _live_child(self) -> Child:
        if self._child is not None and self._child.process.poll() is not None:
            end(self._child)
            self._child = None
        if self._child is None:
            self._child = spawn(self._owner, self._source)
        return self._child

    def _memory_of(self, schema: Schema) -> ModelMemory:
        if self._memory is None or self._memory.schema != schema:
            if self._memory is not None:
                self._memory.close()
            self._memory, self._base_digest = ModelMemory.create(schema), None
        return self._memory

    def _kept_memory_of(self, schema: Schema) -> ModelMemory:
        if self._kept is None or self._kept.schema != schema:
            if self._kept is not None:
                self._kept.close()
            self._kept = ModelMemory.create(schema)
        return self._kept

    def _bury(self, child: Child) -> str:
        status = end(child)
        with self._lock:
            if self._child is child:
                self._child = None
            if self._cancelled:
                return "the training was cancelled"
        return f"the training process {status} in the middle of its work"


def _told_of_model(child: Child) -> Child | None:
    if not isinstance(child.model, Exchanged):
        child.model = told_of_model(child.link, again=bool(child.model))
    return child if child.model else None


def _ask(
    child: Child, memory: ModelMemory, kept: ModelMemory | None, work: Work
) -> dict[str, Any] | None:
    if not child.model and _told_of_model(child) is None:
        return None  # that answer comes first
    try:
        if child.memory is not memory:
            child.link.send(schema_message(memory.schema), memory.descriptor)
            child.memory = memory
        if kept is not None and child.kept is not kept:
            child.link.send(kept_message(kept.schema), kept.descriptor)
            child.kept = kept
        child.link.send(
            {
                "job": work.job,
                "round": work.round,
                "phase": work.phase,
                "settings": dict(work.settings),
                "in_place": work.in_place,
                "gradients": work.gradients,
                "statistics": statistics_message(work.statistics),
                "begins_with_kept": work.begins_with_kept if kept is not None else None,
                "private": work.private
                and {"noise": work.private.noise, "clip": work.private.clip},
            }
        )
        while (answer := child.link.receive()) is not None and "spend" in answer:
            why_not = work.private.spend(answer["spend"]) if work.private else "it is not private"
            child.link.send({"spent": why_not})
        return answer
    except OSError:  # the process died before it had read all of it
        return None
