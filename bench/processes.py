"""The processes that a measurement starts: their logs, their failures and their end."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.failure import BenchFailed
from bench.proc import started_at, with_descendants
from cairn.runtime.supervisor import begin, end

_STOP_SECONDS = 15
_LAST_LINES = 15
_LINES_OF_OTHERS = 4


class Processes:
    """Starts processes; none of them, and none of their children, outlives the `with` block."""

    def __init__(self, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._environment = {**os.environ, **(environment or {})}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a process, or one that has ended again, with a log of its own."""
        with self.log(name).open("ab") as log:
            whole = {**self._environment, **(environment or {})}
            self._running[name] = begin(command, whole, log)

    def end(self, name: str) -> None:
        """End a process, which may be started again."""
        end([self._running.pop(name)], _STOP_SECONDS)

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
            end(list(self._running.values()), _STOP_SECONDS)
            _end_left_over(family)


def _end_left_over(family: Mapping[int, str]) -> None:
    """End the descendants that went on in a session of their own."""
    for pid, started in family.items():
        if started and started_at(pid) == started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


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
