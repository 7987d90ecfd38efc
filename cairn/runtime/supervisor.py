"""Starts processes on this machine and ends them: for `cairn demo`, the benchmarks and the tests."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def begin(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    output: Any,
    stdin: int = subprocess.DEVNULL,
) -> "subprocess.Popen[bytes]":
    """Start a process that prints into `output`, a file or `subprocess.PIPE`, and reads nothing, if nothing else is said.

    It has a session of its own: Ctrl-C reaches this process alone, which then ends the others in order. All
    share this machine's cores, so each computes with one thread, unless the environment says otherwise.
    """
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={"OMP_NUM_THREADS": "1", **environment},
        start_new_session=True,
    )


def end(processes: Sequence["subprocess.Popen[bytes]"], seconds: float) -> None:
    """Ask them all to stop, give them so long together, and kill their sessions."""
    for process in processes:
        process.terminate()
    last = time.monotonic() + seconds
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0, last - time.monotonic()))
        with suppress(ProcessLookupError):  # also what it has left behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGTERM is an interrupt as Ctrl-C is, so that it ends what was started too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody has now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [taken.getsockname()[1] for taken in sockets]
    finally:
        for taken in sockets:
            taken.close()
