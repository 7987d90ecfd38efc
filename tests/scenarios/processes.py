"""Nodes as processes: where they listen, what they print, and waiting for them with a deadline."""

import itertools
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from cairn.runtime.supervisor import begin
from tests.warm.adoption import NAME as NAME_OF_PARENT
from tests.warm.start import start

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
PATIENCE = 180.0  # of a test; what it waits for takes a second or two where nothing else runs

# Below the ports that the system gives to outgoing connections, and apart for every test process.
_PORTS = (20_000 + (os.getpid() * 40 + step) % 10_000 for step in itertools.count())


def free_port() -> int:
    """A port of this machine that nobody has, and that no other test process will ask for soon."""
    for port in _PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError


def until(condition: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """Ask again and again until the answer is true; fail the test after so many seconds."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds:g} seconds"
        time.sleep(0.02)
    return answer


class Node:
    """A process of ours and everything it prints."""

    is_cold = False

    def __init__(self, name: str, log: Path, *command: str | Path, **environment: str) -> None:
        self.name = name
        self.log = log
        whole = os.environ | {"OMP_NUM_THREADS": "1", "CAIRN_LOG": "json", **environment}
        with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
            descriptors = {0: nothing.fileno(), 1: output.fileno(), 2: output.fileno()}
            warm = None if self.is_cold else start(command, whole, descriptors)
            self.process = warm or begin(command, whole, output)

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def says(self, words: str, seconds: float = PATIENCE) -> None:
        """Wait until it has printed the words."""

        def said_or_ended() -> bool:
            return words in self.output() or self.process.poll() is not None

        until(said_or_ended, f"{self.name} says {words!r}", seconds)
        assert words in self.output(), f"{self.name} ended without {words!r}:\n{self.output()}"

    def events(self, event: str) -> list[dict[str, Any]]:
        """What it has logged under this name."""
        lines = [line for line in self.output().splitlines() if line.startswith("{")]
        return [entry for line in lines if (entry := json.loads(line))["event"] == event]

    def ends(self, seconds: float = PATIENCE) -> int:
        """Wait for its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} goes on:\n{self.output()}") from None

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would, and wait until it is gone."""
        self.process.kill()
        self.process.wait()


class ColdNode(Node):
    """One that starts as a user's does, and is not forked off a process that has imported everything."""

    is_cold = True


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    found = []
    for task in list(Path(f"/proc/{pid}/task").iterdir()):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
            children = (task / "children").read_text().split()
            found += [int(child) for child in children if _name_of(child) != NAME_OF_PARENT]
    return found


def _name_of(pid: str) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def descendants_of(pid: int) -> list[int]:
    return [p for child in children_of(pid) for p in (child, *descendants_of(child))]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def tcp_sockets_of(pid: int) -> list[str]:
    """The states of a process's TCP sockets, as /proc/net/tcp writes them: 0A listens, 01 is open."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = descriptor.readlink().as_posix()
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    return [row[3] for row in _tcp_rows() if row[9] in inodes]


def _tcp_rows() -> Iterator[list[str]]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            yield line.split()
