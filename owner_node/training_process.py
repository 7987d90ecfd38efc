"""Keeps the owner's training process: starts it, gives it work, and notices when it dies.

The task's code runs there and nowhere else. That process is spawned, not forked, so it holds no key
and no channel; all it gets is its end of a socket, the memory of the model and the environment that a
task may have. This module imports no torch.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from cairn.exchanged import Exchanged
from cairn.task_environment import passed_on
from cairn.task_loading import TaskFailed
from cairn.tensors import Schema
from cairn.timeouts import PARTING_SECONDS
from owner_node.sandbox import Sandbox, clear, furnish
from owner_node.training_link import (
    ASK_FOR_MODEL,
    Link,
    ModelMemory,
    schema_message,
    told_of_model,
)

__all__ = ["TaskFailed", "TaskSource", "Trained", "TrainingProcess", "Work"]

T = TypeVar("T")


@dataclass(frozen=True)
class TaskSource:
    """A task of the owner's own file: its name there, its code and its data.

    `file` is the path of a .py file or "package.module:attribute". The task runs only where its data
    has at least `min_examples`. `environment` names the variables that it gets beside those that every
    task gets (cairn/task_environment.py). Without a `sandbox` it can open whatever this account can.
    """

    name: str
    file: str
    data: Path
    min_examples: int = 1
    environment: tuple[str, ...] = ()
    sandbox: Sandbox | None = None


@dataclass(frozen=True)
class Work:
    """What a round asks of the task.

    With `in_place` it trains in the base's own memory: the base is not there any more afterwards.
    """

    job: str
    round: int
    phase: Literal["train", "evaluate"]
    settings: Mapping[str, float]
    schema: Schema
    in_place: bool = False


@dataclass(frozen=True)
class Trained:
    """What came out. `payload` is valid until the next run, and empty after an evaluation."""

    payload: memoryview
    examples: int
    metrics: dict[str, float]


@dataclass
class _Child:
    process: "subprocess.Popen[bytes]"
    link: Link
    place: Path | None = None  # that of its sandbox
    memory: ModelMemory | None = None
    # What it has said of the task's model: nothing yet, that, or why it cannot say.
    model: "Exchanged | dict[str, Any]" = field(default_factory=dict)


class TrainingProcess:
    """The training process of one task, started anew whenever it is needed and not there."""

    def __init__(self, owner: str, source: TaskSource) -> None:
        self._owner = owner
        self._source = source
        self._lock = threading.Lock()  # over the three fields that `cancel` shares with `run`
        self._child: _Child | None = None
        self._running = False
        self._cancelled = False
        self._memory: ModelMemory | None = None
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
        """Where the base belongs before `run`, and where it is afterwards, unless it trained in place.

        The same memory for every round of a schema, until the task keeps some of it.
        """
        return self._memory_of(schema).base

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
        if work.in_place:
            self._base_digest = None
        answer = self._answered(lambda child: _ask(child, memory, work), is_over)
        if answer["kept"]:
            memory = self._left_to_task(memory, work)
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
                _kill(self._child)

    def close(self) -> None:
        """End the process and give its memory back."""
        self.cancel()
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            _end(child)
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _answered(self, ask: Callable[[_Child], T | None], is_over: Callable[[], bool]) -> T:
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

    def _live_child(self) -> _Child:
        if self._child is not None and self._child.process.poll() is not None:
            _end(self._child)
            self._child = None
        if self._child is None:
            self._child = _spawn(self._owner, self._source)
        return self._child

    def _memory_of(self, schema: Schema) -> ModelMemory:
        if self._memory is None or self._memory.schema != schema:
            if self._memory is not None:
                self._memory.close()
            self._memory, self._base_digest = ModelMemory.create(schema), None
        return self._memory

    def _left_to_task(self, memory: ModelMemory, work: Work) -> ModelMemory:
        """Go on with a copy: what the task has kept of this memory must not change from now on."""
        copy = ModelMemory.create(memory.schema)
        copy.base[:] = memory.base
        if work.phase == "train" and not work.in_place:
            copy.update[:] = memory.update
        memory.close()
        self._memory = copy
        return copy

    def _bury(self, child: _Child) -> str:
        status = _end(child)
        with self._lock:
            if self._child is child:
                self._child = None
            if self._cancelled:
                return "the training was cancelled"
        return f"the training process {status} in the middle of its work"


def _spawn(owner: str, source: TaskSource) -> _Child:
    ours, theirs = socket.socketpair()
    place = furnish() if source.sandbox is not None else None
    with theirs:
        process = subprocess.Popen(
            [*_command(source, place), str(theirs.fileno()), owner, *_arguments(source)],
            stdin=subprocess.DEVNULL,
            close_fds=True,
            pass_fds=[theirs.fileno()],
            env=_environment(source, place),
            # Ctrl-C is for the owner node, which ends its training process itself. Without its terminal,
            # the task cannot type into the operator's shell either (TIOCSTI).
            start_new_session=True,
        )
    link = Link(ours)
    with suppress(OSError):  # where it is gone already, the first answer that is waited for says so
        link.send(ASK_FOR_MODEL)
    return _Child(process, link, place)


def _command(source: TaskSource, place: Path | None) -> list[str]:
    python = [sys.executable, "-P", "-m"]
    if source.sandbox is None or place is None:
        return [*python, "owner_node.training"]
    return [*python, "owner_node.sandboxed", source.sandbox.spec(place)]


def _arguments(source: TaskSource) -> list[str]:
    # Absolute: a process in a sandbox has another working directory.
    file = source.file
    if file.endswith(".py"):
        file = str(Path(file).absolute())
    return [file, str(source.data.absolute()), str(source.min_examples)]


def _environment(source: TaskSource, place: Path | None) -> dict[str, str]:
    ours = passed_on(os.environ, source.environment)
    fixed = {"GRPC_ENABLE_FORK_SUPPORT": "0", "PYTHONUNBUFFERED": "1"}
    return ours | fixed | ({} if place is None else {"TMPDIR": str(place / "work")})


def _told_of_model(child: _Child) -> _Child | None:
    if not isinstance(child.model, Exchanged):
        child.model = told_of_model(child.link, again=bool(child.model))
    return child if child.model else None


def _ask(child: _Child, memory: ModelMemory, work: Work) -> dict[str, Any] | None:
    if not child.model and _told_of_model(child) is None:
        return None  # that answer comes first
    try:
        if child.memory is not memory:
            child.link.send(schema_message(memory.schema), memory.descriptor)
            child.memory = memory
        child.link.send(
            {
                "job": work.job,
                "round": work.round,
                "phase": work.phase,
                "settings": dict(work.settings),
                "in_place": work.in_place,
            }
        )
        return child.link.receive()
    except OSError:  # the process died before it had read all of it
        return None


def _kill(child: _Child) -> None:
    # The whole group, so that the worker processes of a DataLoader go too.
    if child.process.poll() is None:
        with suppress(ProcessLookupError):  # it ended meanwhile
            os.killpg(child.process.pid, signal.SIGKILL)


def _end(child: _Child) -> str:
    """Close the socket, which ends an idle process, and say how it ended."""
    child.link.close()
    try:
        status = child.process.wait(PARTING_SECONDS)
    except subprocess.TimeoutExpired:
        _kill(child)
        status = child.process.wait()
    if child.place is not None:
        clear(child.place)
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"
