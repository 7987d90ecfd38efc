"""Flower, by its gRPC mode (`start_server` and `start_client`) with TLS off: measured, its fastest."""

import json
import socket
import time
from contextlib import suppress
from pathlib import Path

from bench.failure import BenchFailed
from bench.peers.peer import PROGRAMS, Peer, PeerRounds, peak_until_ended
from bench.processes import Processes
from bench.work import Work
from cairn.runtime.supervisor import free_ports

VERSION = "1.42.0"
_PROGRAM = PROGRAMS / "flower_program.py"
_PATIENCE_SECONDS = 120
_MOMENT_SECONDS = 0.05
_UNCHANGED = 1.0  # the first element of the model, and so of every average


def _run(python: Path, home: Path, work: Work) -> PeerRounds:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    result = home / "result.json"
    numbers = [str(n) for n in (work.megabytes, work.owners, work.rounds + 1)]
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "HOME": str(home)}
    with Processes(home / "logs", quiet) as processes:
        program = [str(python), str(_PROGRAM)]
        processes.start("server", [*program, "server", address, *numbers, str(result)])
        _await_door(address, processes)
        for name in work.names:
            processes.start(name, [*program, "client", address])
        peak = peak_until_ended(processes, "server", others_stay=False)
    answer = json.loads(result.read_text(encoding="utf-8"))
    if answer["first"] != _UNCHANGED:
        raise BenchFailed(f"Flower's average is wrong: {answer['first']}")
    return PeerRounds(tuple(answer["seconds"][1:]), peak)


def _await_door(address: str, processes: Processes) -> None:
    """Wait until the server listens."""
    host, _, port = address.partition(":")
    end = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end:
        processes.has_ended("server")
        with suppress(OSError), socket.create_connection((host, int(port))):
            return
        time.sleep(_MOMENT_SECONDS)
    raise BenchFailed("Flower's server does not listen")


FLOWER = Peer(
    name=f"Flower {VERSION}, gRPC mode, no TLS",
    environment="flower",
    requirements=(f"flwr=={VERSION}",),
    run=_run,
)
