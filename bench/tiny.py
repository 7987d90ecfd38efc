"""Measures the tutorial from the start of its processes: the cold start, and seconds a round.

`cold_start_seconds` ends when the model of the last of 10 rounds is saved, and includes making the
certificates; `seconds_per_round` is the median of the rounds after the first.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.figures import Figures
from bench.processes import Processes

_RUNS = 3
_COLD_ROUNDS = 10
_LONG_RUN_ROUNDS = 200
_MOMENT_SECONDS = 0.05


def measure_tiny() -> Figures:
    cold = [_run(_COLD_ROUNDS)[0] for _ in range(_RUNS)]
    seconds = _run(_LONG_RUN_ROUNDS)[1]
    return {
        "cold_start_seconds": round(statistics.median(cold), 2),
        "cold_start_seconds_each": [round(each, 2) for each in cold],
        "seconds_per_round": round(statistics.median(seconds[1:]), 4),
        "rounds": _LONG_RUN_ROUNDS,
    }


def _run(rounds: int) -> tuple[float, list[float]]:
    """Run the tutorial; returns the seconds to the saved model, and each round's."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        out = Path(directory) / "run"
        command = [sys.executable, "-m", "cairn", "demo", "tutorial", "--out", str(out)]
        with Processes(Path(directory) / "logs") as processes:
            begun = time.time()
            processes.start("demo", [*command, "--rounds", str(rounds)])
            while not processes.has_ended("demo"):
                time.sleep(_MOMENT_SECONDS)
        saved = (out / "model.safetensors").stat().st_mtime
        lines = (out / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return saved - begun, [json.loads(line)["seconds"] for line in lines]
