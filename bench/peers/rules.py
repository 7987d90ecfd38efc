"""Records what Flower's own rules and optimizers make of random updates, for `tests/golden/test_flower.py` to compare.

The recording is an archive of NumPy, whose names end with the type of the values. It has what Flower was given:

    numbers       JSON: the numbers of the rules and optimizers, and Flower's version
    examples      of each owner, for the weighted mean
    base F32      the model that a round starts from
    updates F32   of each owner; the last two are false
    near F32      updates that lie ten thousand times nearer to one another than to zero
    results F32   what an optimizer steps along: the averages of several rounds

and what Flower made of it, by the names of `bench/peers/programs/flower_rules.py`.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.failure import BenchFailed
from bench.peers.flower import FLOWER, VERSION
from bench.peers.peer import PROGRAMS
from cairn.model.schema import DTYPES

RECORDING = Path(__file__).parents[2] / "tests" / "golden" / "flower.npz"
_PROGRAM = PROGRAMS / "flower_rules.py"
_OWNERS, _ELEMENTS, _ROUNDS = 12, 40, 5
_DTYPES = ("F16", "F32", "F64")  # NumPy has no BF16, and so has Flower none
_STEPPED = ("F32", "F64")  # with F16, the state of Flower's optimizers is F16 as well
_BETAS = {"beta1": 0.9, "beta2": 0.99}
_NUMBERS = {
    "flower": VERSION,
    "dtypes": _DTYPES,
    "norm": 2.0,
    "trim": 0.2,
    "byzantine": 3,
    "select": 5,
    "buckets": [3, 4],
    "sgd": {"lr": 0.5, "momentum": 0.9},
    "adagrad": {"lr": 0.5, "epsilon": 1e-3},
    "adam": {"lr": 0.5, **_BETAS, "epsilon": 1e-3},
    "yogi": {"lr": 0.5, **_BETAS, "epsilon": 1e-12},
}


def record_flower() -> Path:
    """Run Flower's rules on random updates and keep both. Raises BenchFailed with the last words of what failed."""
    given = _inputs()
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        inputs, result = Path(home, "inputs.npz"), Path(home, "result.npz")
        np.savez(inputs, **given)
        command = [FLOWER.python(), _PROGRAM, inputs, result]
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "HOME": home}
        done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchFailed(f"Flower's rules failed:\n{done.stderr[-1000:]}")
        np.savez_compressed(RECORDING, **given, **np.load(result))
    return RECORDING


def _inputs() -> dict[str, Any]:
    generator = np.random.default_rng(12)
    base = generator.normal(0, 1, _ELEMENTS)
    updates = base + generator.normal(0.2, 0.3, (_OWNERS, _ELEMENTS))
    updates[-2:] *= -3
    near = 100 + generator.normal(0, 1e-2, (_OWNERS, _ELEMENTS))
    results = generator.normal(0, 1, (_ROUNDS, _ELEMENTS))
    given: dict[str, Any] = {
        "numbers": np.array(json.dumps(_NUMBERS)),
        "examples": generator.integers(1, 100, _OWNERS),
        "near F32": near.astype(DTYPES["F32"]),
    }
    for dtype in _DTYPES:
        given[f"base {dtype}"] = base.astype(DTYPES[dtype])
        given[f"updates {dtype}"] = updates.astype(DTYPES[dtype])
    return given | {f"results {dtype}": results.astype(DTYPES[dtype]) for dtype in _STEPPED}
