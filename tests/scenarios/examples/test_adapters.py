"""The adapters' example learns, sends a fifth of its model, and leaves the rest as it was."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cairn.tasks.first_model import first_model, first_split
from cairn.tasks.loader import load_task
from cairn.tasks.runner import TaskRunner
from cairn.tasks.state_dict import payload_of, read_state
from cairn.tasks.task import Round, Site, Task
from tests.scenarios.examples.scripts import run_script

EXAMPLE = Path(__file__).parents[3] / "examples" / "adapters"
JOB = tomllib.loads((EXAMPLE / "job.toml").read_text())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("offices")
    run_script(EXAMPLE / "prepare.py", made)
    return made


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(str(EXAMPLE / "task.py"))


def trained(task: Task, directory: Path, offices: list[str], rounds: int) -> dict[str, Tensor]:
    """Rounds of plain federated averaging, in binary64; every office has as many examples."""
    schema, base = first_model(task, JOB["seed"])
    runners = [TaskRunner(task, Site(name, directory / f"{name}.npz")) for name in offices]
    for number in range(1, rounds + 1):
        updates = [bytearray(schema.total_bytes) for _ in runners]
        for runner, update in zip(runners, updates, strict=True):
            runner.train(Round("adapters", number, JOB["settings"]), schema, base, update)
        states = [read_state(schema, update) for update in updates]
        means = {
            name: torch.stack([state[name].double() for state in states]).mean(0).float()
            for name in states[0]
        }
        _, base = payload_of(means)
    return read_state(schema, base)


def accuracy(task: Task, directory: Path, state: dict[str, Tensor]) -> float:
    """On all held-out digits, by the whole model as the README puts it together."""
    reader = task.model()
    reader.load_state_dict(state, strict=False)
    right = total = 0
    for name in JOB["owners"]:
        with np.load(directory / f"{name}.npz") as file, torch.no_grad():
            answers = reader(torch.tensor(file["test_x"])).argmax(1)
            right += int((answers == torch.tensor(file["test_y"])).sum())
            total += len(answers)
    return right / total


def test_the_offices_together_read_better_than_one_alone(task: Task, directory: Path) -> None:
    together = trained(task, directory, JOB["owners"], JOB["rounds"])
    alone = trained(task, directory, ["office-1"], JOB["rounds"])
    assert accuracy(task, directory, together) >= 0.92
    assert accuracy(task, directory, together) > accuracy(task, directory, alone) + 0.03


def test_adapters_and_head_travel_and_the_frozen_network_stays(task: Task) -> None:
    frozen = load_file(EXAMPLE / "pretrained.safetensors")
    parts = first_split(task, JOB["seed"])
    assert parts.private.keys() == frozen.keys()
    assert all(torch.equal(parts.private[name], values) for name, values in frozen.items())
    schema, _ = first_model(task, JOB["seed"])
    whole = task.model().state_dict()
    rows = re.findall(r"^\| (?:travels|stays),.* \| (\d+) \| (\d+) \|$", readme(), re.MULTILINE)
    assert rows == [
        (str(len(schema.tensors)), str(schema.total_bytes)),
        (str(len(frozen)), str(sum(value.nbytes for value in frozen.values()))),
    ]
    assert len(whole) == len(schema.tensors) + len(frozen)


def readme() -> str:
    return (EXAMPLE / "README.md").read_text()


def test_every_digit_is_in_one_office_held_out_or_not_and_none_is_public(directory: Path) -> None:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it has no types

    rows = []
    for name in JOB["owners"]:
        with np.load(directory / f"{name}.npz") as file:
            rows += [file["train_x"], file["test_x"]]
    images = load_digits().images[600:] / 16
    turned = [np.rot90(image).astype(np.float32).tobytes() for image in images]
    assert sorted(row.tobytes() for row in np.concatenate(rows)) == sorted(turned)


def test_the_frozen_network_can_be_made_again(tmp_path: Path) -> None:
    made = tmp_path / "made.safetensors"
    run_script(EXAMPLE / "pretrain.py", made)
    shapes = [
        {name: value.shape for name, value in load_file(path).items()}
        for path in (made, EXAMPLE / "pretrained.safetensors")
    ]
    assert shapes[0] == shapes[1]


def test_the_settings_of_the_job_are_inside_the_owners_ranges() -> None:
    ranges = tomllib.loads((EXAMPLE / "tasks.toml").read_text())["tasks"]["adapters"]["settings"]
    assert JOB["settings"].keys() == ranges.keys()
    assert all(ranges[n][0] <= value <= ranges[n][1] for n, value in JOB["settings"].items())
