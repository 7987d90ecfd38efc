"""The training process: the only place where an owner's task runs, and the only one with PyTorch.

Started by `training_process`, with its end of a socket and no other way out.
"""

import gc
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cairn.errors import UsageError
from cairn.runtime.malloc import keep_freed_memory
from cairn.runtime.timeouts import SHUTDOWN_SECONDS
from cairn.tasks.kept import KeptValues
from cairn.tasks.loader import TaskFailed, load_task, own_traceback
from cairn.tasks.private import Privacy
from cairn.tasks.runner import TaskRunner
from cairn.tasks.task import Round, Site
from cairn.v1 import round_pb2 as pb
from owner_node.training.ipc import (
    ASK_FOR_MODEL,
    Link,
    ModelMemory,
    exchanged_message,
    schema_from,
    statistics_from,
)
from owner_node.training.memory_shortage import go_first


@dataclass(frozen=True)
class Memories:
    """What of the node's memory this process has been given: the model's, and that of kept tensors."""

    model: ModelMemory
    kept: ModelMemory | None = None


Spend = Callable[[float, int], None]  # as `Privacy.spend`
Order = tuple[Memories | None, Mapping[str, Any]]  # without memory it is ASK_FOR_MODEL


def _nobody_to_ask(_sample_rate: float, _steps: int) -> None:
    raise TaskFailed("nobody keeps the account of private training here")


class Training:
    """Carries out the work of one task, message by message."""

    def __init__(
        self, file: str, site: Site, min_examples: int = 1, spend: Spend = _nobody_to_ask
    ) -> None:
        self._spend = spend
        self._file = file
        self._site = site
        self._min_examples = min_examples
        self._runner: TaskRunner | None = None

    def model(self) -> dict[str, Any]:
        """Say what the task's model exchanges. No data is read for it.

        Asked before the first round, so that a mistake in the task shows at once.
        """
        try:
            exchanged = self._load().exchanged()
        except TaskFailed as failed:
            _show(failed)
            return {"reason": failed.reason, "text": str(failed)}
        gc.collect()  # the model may be part of a cycle
        return exchanged_message(exchanged)

    def answer(self, memories: Memories, message: Mapping[str, Any]) -> dict[str, Any]:
        """Do one piece of work and say how it went."""
        answer = self._answer(memories, message)
        if self._runner is not None and self._runner.has_a_model():
            gc.collect()  # it may be part of a cycle, which holds as much memory as the model takes
        return answer

    def _answer(self, memories: Memories, message: Mapping[str, Any]) -> dict[str, Any]:
        memory = memories.model
        base, kept = memory.private_base(), _kept(memories, message)
        update = memory.base if message["in_place"] else memory.update
        this = Round(message["job"], message["round"], message["settings"])
        try:
            runner = self._load()
            if (statistics := statistics_from(message)) is not None:
                outcome = runner.statistics(statistics, update)
            elif message["phase"] == "evaluate":
                outcome = runner.evaluate(
                    this, memory.schema, base, kept, gradients=message["gradients"]
                )
            elif message["gradients"]:
                outcome = runner.gradients(this, memory.schema, base, update, kept)
            else:
                outcome = runner.train(
                    this, memory.schema, base, update, kept, self._privacy(message["private"])
                )
        except TaskFailed as failed:
            _show(failed)
            return {"reason": failed.reason, "text": str(failed)}
        return {"examples": outcome.examples, "metrics": outcome.metrics}

    def _privacy(self, asked: Mapping[str, float] | None) -> Privacy | None:
        return None if asked is None else Privacy(asked["noise"], asked["clip"], self._spend)

    def _load(self) -> TaskRunner:
        if self._runner is None:
            try:
                self._runner = TaskRunner(load_task(self._file), self._site, self._min_examples)
            except UsageError as error:
                raise TaskFailed(str(error)) from None
        return self._runner


def main(arguments: list[str]) -> None:
    """Work until the owner's process closes the socket."""
    go_first()
    keep_freed_memory()
    descriptor, owner, file, data, min_examples = arguments
    # Ctrl-C is for the owner's process: when that ends, this one does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end = socket.socket(fileno=int(descriptor))
    # What the task itself starts, or forks off, must not keep the socket open.
    end.set_inheritable(False)
    os.register_at_fork(after_in_child=end.close)
    link = Link(end)
    orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(link, orders, answers), daemon=True).start()

    def spend(sample_rate: float, steps: int) -> None:
        link.send({"spend": {"sample_rate": sample_rate, "steps": steps}})
        if why_not := answers.get():
            raise TaskFailed(why_not, pb.REASON_BUDGET_SPENT)

    gc.freeze()  # PyTorch has 100000 objects, and to look at them takes longer than a small round
    training = Training(file, Site(owner, Path(data)), int(min_examples), spend)
    for memories, message in iter(orders.get, None):
        try:
            link.send(training.answer(memories, message) if memories else training.model())
        except OSError:  # the owner's process has gone
            return


def _listen(
    link: Link,
    orders: "queue.SimpleQueue[Order | None]",
    answers: "queue.SimpleQueue[str]",
) -> None:
    """Read messages, also while the task runs, so that this process never outlives its owner's."""
    memory: ModelMemory | None = None
    kept: ModelMemory | None = None
    while (message := link.receive()) is not None:
        if "spent" in message:
            answers.put(message["spent"])
        elif "schema" in message:
            if memory is not None:
                memory.close()
            memory = ModelMemory(schema_from(message), link.received_descriptor())
        elif "kept_schema" in message:
            if kept is not None:
                kept.close()
            kept = ModelMemory(schema_from(message, "kept_schema"), link.received_descriptor())
        elif message == ASK_FOR_MODEL:
            orders.put((None, message))
        elif memory is not None:
            orders.put((Memories(memory, kept), message))
    orders.put(None)
    # An idle process is gone by then; the owner's waits for longer.
    time.sleep(SHUTDOWN_SECONDS / 2)
    os.killpg(os.getpid(), signal.SIGKILL)


def _kept(memories: Memories, message: Mapping[str, Any]) -> KeptValues | None:
    """The kept tensors of this piece of work; None where the node keeps none of the task."""
    if memories.kept is None or message["begins_with_kept"] is None:
        return None
    return KeptValues(memories.kept.schema, memories.kept.base, message["begins_with_kept"])


def _show(failed: TaskFailed) -> None:
    """Print what the task's own code raised on the owner's console; it goes nowhere else."""
    print(own_traceback(failed), end="", file=sys.stderr)  # noqa: T201  the owner's console


if __name__ == "__main__":
    main(sys.argv[1:])
