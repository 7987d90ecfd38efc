"""What a run of the benchmark moves: its files, and the model that must come out of it.

The model is four float32 tensors of one size. Its values repeat one block of noise; only the first
element ever changes, by what `bench/task.py` adds. Where the work names a rule, all elements change, for what a rule costs
may depend on how updates differ: each owner adds a block of noise of its own, over and over.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from bench.failure import BenchFailed
from cairn.protocol.words import RULES

MEGABYTE = 10**6
PARAMETERS = 4
_ITEM_BYTES = 4
_ELEMENTS_PER_MEGABYTE = MEGABYTE // _ITEM_BYTES // PARAMETERS
NOISE = 1e-3  # its standard deviation
_BLOCK_ELEMENTS = 1 << 18
_SMALLEST_FLOOR = 2
_ROUNDING = 1e-6  # of values as large as these, over a few rounds
_TASK = f"""
[tasks.bench]
file = "task.py"
data = "{{data}}"
rules = {json.dumps(list(RULES))}
"""


@dataclass(frozen=True)
class Work:
    """A model of so many megabytes, averaged over so many owners in so many rounds that are timed."""

    megabytes: int
    owners: int
    rounds: int
    weighting: str = "equal"
    rule: str | None = None
    rule_numbers: Mapping[str, float] = field(default_factory=dict)
    job: int = 0  # its number in its federation: no two start from one model

    @property
    def floor(self) -> int:
        """As high as can be; with a rule the lowest, since it averages over fewer than all."""
        return self.owners if self.rule is None else _SMALLEST_FLOOR

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"owner{number:02d}" for number in range(1, self.owners + 1))

    @property
    def model_bytes(self) -> int:
        return self.megabytes * MEGABYTE

    @property
    def bytes_per_round(self) -> int:
        """To every owner, from every owner, and the average."""
        return (2 * self.owners + 1) * self.model_bytes

    @property
    def all_rounds(self) -> int:
        """One to warm up before those that are timed, and one to look at the memory after them."""
        return self.rounds + 2

    @property
    def parameter_elements(self) -> int:
        return self.megabytes * _ELEMENTS_PER_MEGABYTE


def write_work(home: Path, work: Work) -> None:
    """Write the task, the job and the model it starts from."""
    shutil.copy(Path(__file__).with_name("task.py"), home / "task.py")
    elements = [str(work.parameter_elements)] * PARAMETERS
    (home / "elements").write_text(" ".join(elements), encoding="utf-8")
    (home / "tasks.toml").write_text(_TASK, encoding="utf-8")
    job = {
        "name": f"bench-{work.job}",
        "task": "bench",
        "model": "initial.safetensors",
        "rounds": work.all_rounds,
        "owners": work.names,
        "floor": work.floor,
        "weighting": work.weighting,
        "examples": [1, work.owners],
        "round_deadline_seconds": 3600,
        "gather_seconds": 600,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in job.items()]
    if work.rule is not None:
        numbers = [f"{key} = {value}" for key, value in work.rule_numbers.items()]
        lines += ["[rule]", f'name = "{work.rule}"', *numbers]
        for number, name in enumerate(work.names, start=1):
            (home / f"{name}.noise").write_bytes(_noise(number).tobytes())
    (home / "job.toml").write_text("\n".join(lines), encoding="utf-8")
    with (home / "initial.safetensors").open("wb") as file:
        file.write(_header(work))
        _write_values(file, work)


def check_model(path: Path, work: Work) -> None:
    """Raise BenchFailed where this is not the model that the run had to end with, bit by bit; with a rule, where it cannot be."""
    if work.rule is not None:
        _check_is_between(path, work)
        return
    block = _block(work.job)
    first = block[0]
    for _ in range(work.all_rounds):
        first = _average(first, work)
    with path.open("rb") as file:
        file.seek(int.from_bytes(file.read(8), "little"), os.SEEK_CUR)
        for position in range(0, work.model_bytes, block.nbytes):
            expected = block[: (work.model_bytes - position) // _ITEM_BYTES].copy()
            if position == 0:
                expected[0] = first
            if file.read(expected.nbytes) != expected.tobytes():
                raise BenchFailed(f"{path}: the model is wrong in the block at byte {position}")
        if file.read(1):
            raise BenchFailed(f"{path} is longer than the model")


def _check_is_between(path: Path, work: Work) -> None:
    """Every rule gives a value between those of the updates and the base, and so it moves no element farther a round."""
    count = min(_BLOCK_ELEMENTS, work.parameter_elements)
    noise = np.stack([_noise(number)[:count] for number in range(1, work.owners + 1)])
    with path.open("rb") as file:
        file.seek(int.from_bytes(file.read(8), "little"), os.SEEK_CUR)
        values = np.fromfile(file, "<f4", count)
    moved = (values.astype(float) - _block(work.job)[:count]) / work.all_rounds
    low, high = np.minimum(noise.min(axis=0), 0), np.maximum(noise.max(axis=0), 0)
    is_between = (low - _ROUNDING <= moved) & (moved <= high + _ROUNDING)
    if not is_between.all() or not moved.any():
        raise BenchFailed(f"{path}: the model is not between the updates that became it")


def _average(first: np.float32, work: Work) -> np.float32:
    """The first element after one more round, by exact arithmetic rounded once."""
    total, weights = Fraction(0), 0
    for number in range(1, work.owners + 1):
        weight = number if work.weighting == "examples" else 1
        total += weight * Fraction(float(first + np.float32(number)))
        weights += weight
    return np.float32(total / weights)


def _header(work: Work) -> bytes:
    size = work.parameter_elements * _ITEM_BYTES
    entries = {
        str(index): {
            "dtype": "F32",
            "shape": [work.parameter_elements],
            "data_offsets": [index * size, (index + 1) * size],
        }
        for index in range(PARAMETERS)
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_values(file: IO[bytes], work: Work) -> None:
    block = _block(work.job)
    for position in range(0, work.model_bytes, block.nbytes):
        file.write(block[: (work.model_bytes - position) // _ITEM_BYTES].data)


def _block(seed: int) -> NDArray[np.float32]:
    """One block of values, about as large as trained weights; the first is 0."""
    generator = np.random.default_rng(seed)
    block = generator.standard_normal(_BLOCK_ELEMENTS, np.float32) * np.float32(0.02)
    block[0] = 0
    return block


def _noise(owner: int) -> NDArray[np.float32]:
    """What this owner adds to each parameter."""
    generator = np.random.default_rng([owner, 0])
    return generator.standard_normal(_BLOCK_ELEMENTS, np.float32) * np.float32(NOISE)
