"""NVFLARE, by its simulator with a process for each site, as tensors and with TLS off: measured, its fastest.

Its sites ask for their next task every 2 seconds unless the server's configuration says otherwise, so it
is measured twice: as it comes, and asking every 0.1 seconds.
"""

import re
from datetime import datetime
from functools import partial
from pathlib import Path

from bench.failure import BenchFailed
from bench.peers.peer import PROGRAMS, Peer, PeerRounds, peak_until_ended
from bench.processes import Processes
from bench.work import Work

_PROGRAM = PROGRAMS / "nvflare_program.py"
_ROUND_BEGINS = re.compile(r"^(\S+ \S+) - INFO - Sampled clients:", re.MULTILINE)
_MODEL_SAVED = re.compile(r"^(\S+ \S+) - INFO - End persist model on server", re.MULTILINE)


def _run(python: Path, home: Path, work: Work, *, poll_seconds: float) -> PeerRounds:
    rounds = work.rounds + 1
    numbers = [str(n) for n in (work.megabytes, work.owners, rounds, poll_seconds)]
    with Processes(home / "logs", {"HOME": str(home)}) as processes:
        command = [str(python), str(_PROGRAM), *numbers, str(home / "workspace")]
        processes.start("simulator", command)
        peak = peak_until_ended(processes, "simulator")
        log = processes.log("simulator").read_text(encoding="utf-8", errors="replace")
    averaged = log.count(f"Aggregated {work.owners}/{work.owners} results")
    begun, saved = _times(_ROUND_BEGINS, log), _times(_MODEL_SAVED, log)
    if not averaged == len(begun) == len(saved) == rounds:
        raise BenchFailed(
            f"NVFLARE averaged {averaged} of {rounds} rounds; its log ends:\n{log[-1000:]}"
        )
    seconds = [end - begin for begin, end in zip(begun, saved, strict=True)]
    return PeerRounds(tuple(seconds[1:]), peak)


def _times(line: re.Pattern[str], log: str) -> list[float]:
    """When such lines were logged."""
    found = line.findall(log)
    return [
        datetime.strptime(each, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp() for each in found
    ]


def _peer(name: str, poll_seconds: float) -> Peer:
    run = partial(_run, poll_seconds=poll_seconds)
    requirements = ("nvflare==2.9.0", "torch==2.13.0")
    return Peer(f"NVFLARE 2.9.0, {name}, no TLS", "nvflare", requirements, run)


NVFLARE = _peer("as it comes", 2)
NVFLARE_POLLING = _peer("polling every 0.1 s", 0.1)
