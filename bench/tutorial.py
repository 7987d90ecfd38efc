"""Measures the tutorial from the start of its processes: the cold start, and seconds a round.

Prints one JSON object. `cold_start_seconds` ends when the model of the last of 10 rounds is saved, and
includes making the certificates; `seconds_per_round` is the median of the rounds after the first.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_RUNS = 3
_LONG_RUN_ROUNDS = 200


def run(rounds: int) -> tuple[float, list[float]]:
    """Run the tutorial; returns the seconds to the saved model and each round's."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        begun = time.time()
        subprocess.run(
            [
                sys.executable,
                "-m",
                "cairn",
                "demo",
                "tutorial",
                "--out",
                out,
                "--rounds",
                str(rounds),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        saved = (out / "model.safetensors").stat().st_mtime
        lines = (out / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return saved - begun, [json.loads(line)["seconds"] for line in lines]


def main() -> None:
    cold = [run(10)[0] for _ in range(_RUNS)]
    rounds = run(_LONG_RUN_ROUNDS)[1]
    figures = {
        "cold_start_seconds": round(statistics.median(cold), 2),
        "cold_start_seconds_each": [round(seconds, 2) for seconds in cold],
        "seconds_per_round": round(statistics.median(rounds[1:]), 4),
        "rounds": _LONG_RUN_ROUNDS,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
