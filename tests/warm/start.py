"""Processes that begin at once, because they are forked off one that has imported everything already.

A test starts many processes, each of which would import for a second, or for three where it needs PyTorch. What this
starts are real processes all the same, with their own memory, descriptors, session and environment, and from their
script's first line on they run what a user's would. `Parent` is the process that they are forked off
(`tests/warm/parent.py`); a forked process is a child of whoever asked for it. A node that starts processes itself, as
an owner's does to train, is given a parent of its own.

What a process imports, how its Python starts and ends, and how much memory it takes is tested on cold ones.
"""

import atexit
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from tests.warm.adoption import adopt_orphans, is_orphan

BIN = Path(sys.executable).parent
_SCRIPT = Path(__file__).with_name("parent.py")
# PyTorch and NumPy would start threads, and a process with threads is not safe to fork.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# What Python and the C library read when a process starts: where it is not as here, the process starts cold.
_READ_AT_START = ("PYTHON", "LD_", "GLIBC_", "MALLOC_")
_CHANGES_NOTHING_MUCH = {"PYTHONUNBUFFERED"}
_OTHERWISE = "hasty.py"  # which runs the program that it is told
_NODES = (
    "owner_node.node",
    "owner_node.training.worker",
    "coordinator.node",
    "cairn.cli.demo",
    "tests.warm.optimizers",
)
_STARTED: set[int] = set()  # by this process, whose tests wait for them


class Process:
    """A child of this process that `subprocess` has not started; as much of a Popen as its users need."""

    def __init__(self, pid: int, args: Sequence[str], stdout: io.IOBase | None = None) -> None:
        self.pid = pid
        self.args = args
        self.stdout = stdout
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll() is None:
            descriptor = os.pidfd_open(self.pid)
            try:
                select.select([descriptor], [], [], timeout)
            finally:
                os.close(descriptor)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Parent:
    """A process that forks off what is asked for."""

    def __init__(
        self, requests: socket.socket, process: "subprocess.Popen[bytes] | None" = None
    ) -> None:
        self._requests = requests
        self._process = process
        self._lock = threading.Lock()

    @classmethod
    def begin(cls, modules: Sequence[str], environment: Mapping[str, str]) -> "Parent":
        adopt_orphans()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", _SCRIPT, str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **_ONE_THREAD, **environment},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        parent = cls(ours, process)
        atexit.register(parent.end)
        return parent

    def end(self) -> None:
        self._requests.close()
        if self._process is not None:
            self._process.wait()

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        descriptors: Mapping[int, int],
        directory: str | None = None,
    ) -> int:
        """Start a Python script and return its process's id; it has each of our descriptors under its key."""
        order = {
            "command": command,
            "environment": dict(environment),
            "directory": directory or str(Path.cwd()),
            "targets": list(descriptors),
        }
        _reap_orphans()
        with self._lock:
            socket.send_fds(
                self._requests, [json.dumps(order).encode()], list(descriptors.values())
            )
            answer = self._requests.recv(20)
        assert answer, "the process that others are forked off has ended"
        _STARTED.add(int(answer))
        return int(answer)


def _reap_orphans() -> None:
    """Bury what others have left to this process: nobody else will."""
    for child in Path("/proc/self/task").glob("*/children"):
        for pid in map(int, child.read_text().split()):
            if pid not in _STARTED and is_orphan(pid):
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


@cache
def general() -> Parent:
    """That of owners' and coordinators' nodes, of training processes and of demos."""
    return Parent.begin(_NODES, {})


@cache
def _of_aggregators() -> Parent:
    """An aggregator's C library erases memory that is freed, which is decided when a process starts."""
    return Parent.begin(("aggregator_node.node", "aggregator_node.cli"), _erasing())


@cache
def _of_commands() -> Parent:
    """That of what needs no PyTorch."""
    modules = ("doctor", "health", "identity", "reset", "verify")
    return Parent.begin([f"cairn.cli.{module}" for module in modules], {})


def _erasing() -> dict[str, str]:
    from aggregator_node.hardening import ERASING

    return ERASING


def start(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    descriptors: Mapping[int, int],
    directory: str | None = None,
) -> Process | None:
    """Start a command of ours or a script that runs one; None where it must start cold, as a user's does."""
    words = [str(word) for word in command]
    if words[0] == sys.executable and len(words) > 1 and words[1].endswith(".py"):
        words = words[1:]
    script = Path(words[0])
    program = Path(words[1] if script.name == _OTHERWISE else words[0]).name
    parents: dict[str, Callable[[], Parent]] = {
        "aggregator-node": _of_aggregators,
        "cairn": general if words[1:2] == ["demo"] else _of_commands,
        "coordinator": general,
        "measured.py": _of_commands,
        "node.py": general,  # what a test has an owner's node do, line by line
        "owner-node": general,
        "timed_aggregator.py": _of_aggregators,
    }
    ours = script.parent == BIN or script.suffix == ".py"
    if not ours or program not in parents or not _starts_as_here(environment):
        return None
    parent = parents[program]
    if parent is _of_aggregators:
        environment = {**environment, **_erasing()}
    return Process(parent().start(words, environment, descriptors, directory), words)


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    timeout: float | None = None,
    merged: bool = False,
) -> "subprocess.CompletedProcess[bytes]":
    """Run a command to its end, and keep what it prints: on stdout all of it where that is to be merged."""
    environment = os.environ if env is None else env
    with TemporaryFile() as out, TemporaryFile() as err, Path(os.devnull).open("rb") as nothing:
        second = out if merged else err
        descriptors = {0: nothing.fileno(), 1: out.fileno(), 2: second.fileno()}
        process: Any = start(command, environment, descriptors, str(cwd) if cwd else None)
        if process is None:
            process = subprocess.Popen(
                command, stdin=nothing, stdout=out, stderr=second, env=environment, cwd=cwd
            )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(list(command), code, out.read(), err.read())


def _starts_as_here(environment: Mapping[str, str]) -> bool:
    names = {*environment, *os.environ} - _CHANGES_NOTHING_MUCH
    return all(
        environment.get(name) == os.environ.get(name)
        for name in names
        if name.startswith(_READ_AT_START)
    )


class Subprocess:
    """Stands for the module `subprocess` where a node starts processes that may be warm."""

    DEVNULL, PIPE, STDOUT = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT
    TimeoutExpired = subprocess.TimeoutExpired
    _WARM = ("coordinator", "coordinator.initial_model", "owner_node", "owner_node.training.worker")

    def __init__(self, parent: Callable[[], Parent]) -> None:
        self._parent = parent

    def Popen(self, command: Sequence[str], **how: Any) -> Any:  # noqa: N802 - its name there
        words = [str(word) for word in command if word != "-P"]
        if words[0] != sys.executable or words[1] != "-m" or words[2] not in self._WARM:
            return subprocess.Popen(command, **how)
        spec = find_spec(words[2])
        assert spec is not None
        assert spec.origin is not None
        script = spec.origin.replace("__init__", "__main__")
        descriptors, reader = {1: 1, 2: 2} | {fd: fd for fd in how.get("pass_fds", ())}, None
        with Path(os.devnull).open("rb") as nothing:
            descriptors[0] = nothing.fileno()
            if how.get("stdout") == subprocess.PIPE:  # and its errors go there too
                ours, theirs = os.pipe()
                reader, descriptors[1], descriptors[2] = os.fdopen(ours, "rb"), theirs, theirs
            environment = how.get("env") or os.environ
            pid = self._parent().start([script, *words[3:]], environment, descriptors)
        if reader is not None:
            os.close(theirs)
        return Process(pid, words, reader)

    def run(self, command: Sequence[str], **how: Any) -> Any:
        words = list(command)
        if words[1:2] != ["-m"]:
            return subprocess.run(command, **how)  # noqa: PLW1510 - among them
        return subprocess.CompletedProcess(words, self.Popen(words).wait())
