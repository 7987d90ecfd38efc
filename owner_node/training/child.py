"""Starts and ends the process that a task runs in.

It is spawned, not forked, so it holds no key and no channel; all it gets is its end of a socket, the memory
of the model and the environment that a task may have.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cairn.model.exchanged import Exchanged
from cairn.runtime.timeouts import SHUTDOWN_SECONDS
from cairn.tasks.environment import passed_on
from owner_node.sandbox.choice import Sandbox, furnish
from owner_node.sandbox.clearing import clear
from owner_node.training.ipc import ASK_FOR_MODEL, Link, ModelMemory
from owner_node.training.relay import Relay


@dataclass(frozen=True)
class TaskSource:
    """A task of the owner's own file: its name there, its code and its data.

    `file` is the path of a .py file or "package.module:attribute". The task runs only where its data
    has at least `min_examples`. `environment` names the variables that it gets beside those that every
    task gets (cairn/tasks/environment.py). Without a `sandbox` it can open whatever this account can.
    """

    name: str
    file: str
    data: Path
    min_examples: int = 1
    environment: tuple[str, ...] = ()
    sandbox: Sandbox | None = None


@dataclass
class Child:
    process: "subprocess.Popen[bytes]"
    link: Link
    place: Path | None = None  # that of its sandbox
    relays: Sequence[Relay] = ()  # of what it prints there
    memory: ModelMemory | None = None
    kept: ModelMemory | None = None  # that of kept tensors
    # What it has said of the task's model: nothing yet, that, or why it cannot say.
    model: "Exchanged | dict[str, Any]" = field(default_factory=dict)


def spawn(owner: str, source: TaskSource) -> Child:
    ours, theirs = socket.socketpair()
    place = furnish() if source.sandbox is not None else None
    relays = [] if source.sandbox is None else [Relay.to(1), Relay.to(2)]
    try:
        with theirs:
            first = [str(theirs.fileno()), owner]
            command = [*_command(source, place), *first, *_arguments(source)]
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=relays[0].end if relays else None,
                stderr=relays[1].end if relays else None,
                close_fds=True,
                pass_fds=[theirs.fileno()],
                env=_environment(source, place),
                # Ctrl-C is for the owner node, which ends its training process itself. Without its terminal,
                # the task cannot type into the operator's shell either (TIOCSTI).
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        if place is not None:
            clear(place)
        raise
    finally:
        for relay in relays:
            relay.given()
    link = Link(ours)
    with suppress(OSError):  # where it is gone already, the first answer that is waited for says so
        link.send(ASK_FOR_MODEL)
    return Child(process, link, place, relays)


def kill(child: Child) -> None:
    """Kill the process and its whole group, so that the worker processes of a DataLoader go too."""
    if child.process.poll() is None:
        with suppress(ProcessLookupError):  # it ended meanwhile
            os.killpg(child.process.pid, signal.SIGKILL)


def end(child: Child) -> str:
    """Close the socket, which ends an idle process, and say how it ended."""
    child.link.close()
    try:
        status = child.process.wait(SHUTDOWN_SECONDS)
    except subprocess.TimeoutExpired:
        kill(child)
        status = child.process.wait()
    for relay in child.relays:
        relay.finish()
    if child.place is not None:
        clear(child.place)
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def _command(source: TaskSource, place: Path | None) -> list[str]:
    python = [sys.executable, "-P", "-m"]
    if source.sandbox is None or place is None:
        return [*python, "owner_node.training.worker"]
    return [*python, "owner_node.sandbox.entry", source.sandbox.spec(place)]


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
