"""The hospitals' example learns, and more than a hospital alone."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from aggregator_node.aggregation.suppression import suppressed_pieces
from cairn.protocol.statistics import schema_of
from cairn.protocol.summary import report_of
from cairn.tasks.first_model import first_model
from cairn.tasks.loader import load_task
from cairn.tasks.runner import TaskRunner
from cairn.tasks.state_dict import payload_of, read_state
from cairn.tasks.task import Round, Site
from coordinator.settings import JobSettings
from tests.scenarios.examples.scripts import run_script

EXAMPLE = Path(__file__).parents[3] / "examples" / "breast_cancer"
JOB = tomllib.loads((EXAMPLE / "job.toml").read_text())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("hospitals")
    run_script(EXAMPLE / "prepare.py", made)
    return made


def average(states: list[dict[str, Tensor]], weights: list[int]) -> dict[str, Tensor]:
    """Plain federated averaging, in binary64."""
    means = {
        name: sum(
            (weight * state[name].double() for weight, state in zip(weights, states, strict=True)),
            torch.zeros(()),
        )
        / sum(weights)
        for name in states[0]
    }
    return {
        name: (mean if states[0][name].is_floating_point() else mean.round()).to(
            states[0][name].dtype
        )
        for name, mean in means.items()
    }


def federated(directory: Path, rounds: int) -> tuple[float, dict[str, Tensor]]:
    """The held-out accuracy of a round's release, averaged as the aggregator does, and the model."""
    task = load_task(str(EXAMPLE / "task.py"))
    schema, base = first_model(task, JOB["seed"])
    runners = [TaskRunner(task, Site(name, directory / f"{name}.npz")) for name in JOB["owners"]]
    for number in range(1, rounds + 1):
        this = Round(JOB["name"], number, JOB["settings"])
        updates = [bytearray(schema.total_bytes) for _ in runners]
        outcomes = [
            runner.train(this, schema, base, update)
            for runner, update in zip(runners, updates, strict=True)
        ]
        states = [read_state(schema, update) for update in updates]
        _, base = payload_of(average(states, [outcome.examples for outcome in outcomes]))
    evaluations = [runner.evaluate(this, schema, base) for runner in runners]
    correct = sum(one.metrics["accuracy"] * one.examples for one in evaluations)
    return correct / sum(one.examples for one in evaluations), read_state(schema, base)


def test_the_federated_model_is_better_than_a_hospital_alone(directory: Path) -> None:
    accuracy, _ = federated(directory, JOB["rounds"])
    command = [sys.executable, str(EXAMPLE / "compare.py"), str(directory)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    results = {
        name: float(number)
        for name, number in re.findall(r"^(.+?): +([\d.]+)", printed, re.MULTILINE)
    }
    assert accuracy >= 0.93
    assert accuracy > results["local only"]
    assert accuracy >= results["central"] - 0.03


def test_the_same_rounds_give_the_same_bits(directory: Path) -> None:
    _, one = federated(directory, 2)
    _, two = federated(directory, 2)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["0.num_batches_tracked"].dtype == torch.int64


def test_the_statistics_are_those_of_all_patients_that_are_trained_on(directory: Path) -> None:
    settings = JobSettings.load(EXAMPLE / "statistics.toml").statistics
    assert settings is not None
    statistics, task = settings.counted, load_task(str(EXAMPLE / "task.py"))
    sums = np.zeros(schema_of(statistics).total_bytes // 8, "<i8")
    rows = []
    for name in JOB["owners"]:
        update = bytearray(sums.nbytes)
        TaskRunner(task, Site(name, directory / f"{name}.npz")).statistics(statistics, update)
        sums += np.frombuffer(update, "<i8")
        with np.load(directory / f"{name}.npz") as file:
            rows.append(file["train_x"].astype(np.float64))
    released = b"".join(suppressed_pieces(statistics, [sums.view(np.uint8).data]))
    figures = report_of("statistics", statistics, released)["columns"]
    from sklearn.datasets import load_breast_cancer  # type: ignore[import-untyped]  # it has no types

    names = map(str, load_breast_cancer().feature_names)
    expected = dict(zip(names, np.concatenate(rows).T, strict=True))
    assert figures.keys() == expected.keys()
    for name, values in expected.items():
        of, half_a_step = figures[name], (figures[name]["high"] - figures[name]["low"]) / 2**17
        assert of["count"] == len(values) == 428
        assert of["low"] <= values.min() <= values.max() <= of["high"], name
        assert of["mean"] == pytest.approx(values.mean(), abs=half_a_step), name
        assert of["std"] == pytest.approx(values.std(), abs=half_a_step), name


def test_every_patient_is_in_one_hospital_and_held_out_or_not(directory: Path) -> None:
    from sklearn.datasets import load_breast_cancer

    rows = []
    for name in JOB["owners"]:
        with np.load(directory / f"{name}.npz") as file:
            rows += [*file["train_x"], *file["test_x"]]
    everybody = load_breast_cancer(return_X_y=True)[0].astype(np.float32)
    assert sorted(map(bytes, rows)) == sorted(map(bytes, everybody))


def test_the_comparison_trains_as_the_job_does() -> None:
    source = (EXAMPLE / "compare.py").read_text()
    lr, epochs = JOB["settings"]["lr"], JOB["settings"]["epochs"]
    assert f"ROUNDS = {JOB['rounds']}\n" in source
    assert f'SETTINGS = {{"lr": {lr}, "epochs": {epochs}}}\n' in source


def test_the_job_is_inside_the_owners_ranges() -> None:
    tasks = tomllib.loads((EXAMPLE / "tasks.toml").read_text())["tasks"]
    ranges = tasks[JOB["task"]]["settings"]
    assert all(ranges[n][0] <= value <= ranges[n][1] for n, value in JOB["settings"].items())
