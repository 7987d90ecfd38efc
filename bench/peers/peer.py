"""What a peer is to the comparison, and the environment that it runs in."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.failure import BenchFailed
from bench.processes import Processes
from bench.watch import PeakMemory
from bench.work import Work

PROGRAMS = Path(__file__).with_name("programs")
_ENVIRONMENTS = Path(__file__).parents[2] / ".bench"
_LAST_LINES = 5
_PATIENCE_SECONDS = 1800
_MOMENT_SECONDS = 0.05
_SHARE_OF_TIME = 0.02  # looking at memory makes a round slower
# The build for processors, where pip finds one, and so the same one that Cairn runs on.
_CONSTRAINTS = "torch==2.13.0\nnumpy==2.4.6\n"


@dataclass(frozen=True)
class PeerRounds:
    """What a peer's rounds took after the first, and its memory: of all its processes together."""

    seconds: tuple[float, ...]
    total_peak_bytes: int


@dataclass(frozen=True)
class Peer:
    """A system to compare with. `run` takes its Python, an empty folder and the work."""

    name: str
    environment: str
    requirements: tuple[str, ...]
    run: Callable[[Path, Path, Work], PeerRounds]

    def python(self) -> Path:
        """The Python of its environment, which is made on first use. Raises BenchFailed with pip's words."""
        home = _ENVIRONMENTS / self.environment
        made = home / "made.json"  # written last, so an environment that is half made is made again
        wanted = json.dumps([_CONSTRAINTS, *self.requirements])
        if not made.exists() or made.read_text(encoding="utf-8") != wanted:
            print(f"making {home}", file=sys.stderr)
            _call([sys.executable, "-m", "venv", "--clear", str(home)])
            (_ENVIRONMENTS / ".gitignore").write_text("*\n", encoding="utf-8")
            constraints = home / "constraints.txt"
            constraints.write_text(_CONSTRAINTS, encoding="utf-8")
            pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            _call([*pip, "--constraint", str(constraints), *self.requirements])
            made.write_text(wanted, encoding="utf-8")
        return home / "bin" / "python"


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # Pip's warnings are about the places where it looked.
        errors = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        raise BenchFailed(f"its environment cannot be made: {' '.join(errors[-_LAST_LINES:])}")


def peak_until_ended(processes: Processes, name: str, *, others_stay: bool = True) -> int:
    """Wait until the process ends; returns the most memory that all of them together had at once."""
    memory = PeakMemory(processes.pids(), _SHARE_OF_TIME)
    end = time.monotonic() + _PATIENCE_SECONDS
    while not processes.has_ended(name, others_stay=others_stay):
        if time.monotonic() > end:
            raise BenchFailed(f"{name} has not ended after {_PATIENCE_SECONDS} seconds")
        memory.look()
        time.sleep(_MOMENT_SECONDS)
    return memory.total_bytes
