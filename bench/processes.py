"""The processes that a measurement starts: their logs, their failures and their end."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from bench.failure import BenchFailed
from bench.proc import started_at, with_descendants

_STOP_SECONDS = 15
_LAST_LINES = 15
_LINES_OF_OTHERS = 4


class Processes:
    """Starts processes; none of them, and none of their children, outlives the `with` block."""

    def __init__(self, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._environment = {"OMP_NUM_THREADS": "1", **os.environ, **(environment or {})}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a process, or one that has ended again, with a log of its own."""
        with self.log(name).open("ab") as log:
            # A session of its own: Ctrl-C reaches this process alone, which then ends the others.
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self._environment, **(environment or {})},
                start_new_session=True,
            )

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._running.items()}

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def code_of(self, name: str) -> int | None:
        """With which code the process has ended; None as long as it goes on."""
        return self._running[name].poll()

    def has_ended(self, name: str, *, others_stay: bool = True) -> bool:
        """Whether the process has ended, and well. Raises BenchFailed where it failed, or another.

        Where the others stay, one of them has failed also if it ended well.
        """
        for other, process in self._running.items():
            code = process.poll()
            if code or (code == 0 and others_stay and other != name):
                raise BenchFailed(f"{other} ended with code {code}\n{self.last_lines(other)}")
        return self._running[name].poll() is not None

    def last_lines(self, failed: str) -> str:
        """The last lines of whoever failed, and a few of all the others: the cause may be there."""
        text = []
        for name in (failed, *(self._running.keys() - {failed})):
            lines = self.log(name).read_text(encoding="utf-8", errors="replace").splitlines()
            count = _LAST_LINES if name == failed else _LINES_OF_OTHERS
            text += [f"-- the last lines of {name}:", *lines[-count:]]
        return "\n".join(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        with _undisturbed():
            family = {
                pid: started_at(pid)
                for process in self._running.values()
                for pid in with_descendants(process.pid)
            }
            for process in self._running.values():
                process.terminate()
            end = time.monotonic() + _STOP_SECONDS
            for process in self._running.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, end - time.monotonic()))
                # Also what it has left behind: the session is its own.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            _end_left_over(family)


def _end_left_over(family: Mapping[int, str]) -> None:
    """End the descendants that went on in a session of their own."""
    for pid, started in family.items():
        if started and started_at(pid) == started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM an interrupt, as Ctrl-C is, so that it ends what was started too."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let a second Ctrl-C not cut short what ends the processes."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody has now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [taken.getsockname()[1] for taken in sockets]
    finally:
        for taken in sockets:
            taken.close()
