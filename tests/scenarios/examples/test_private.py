"""The clinics that train privately: the budget of their files, and what a real run of their job releases."""

import re
import tomllib
from pathlib import Path

import numpy as np
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from safetensors.torch import load_file
from sklearn.datasets import load_breast_cancer  # type: ignore[import-untyped]  # it has no types

from tests.scenarios.processes import Node
from tests.warm.start import BIN

EXAMPLE = Path(__file__).parents[3] / "examples" / "private"
JOB = tomllib.loads((EXAMPLE / "job.toml").read_text())
TASK = tomllib.loads((EXAMPLE / "tasks.toml").read_text())["tasks"]["private"]
BUDGET = TASK["private"]
BATCHES = 4


def bound_of(rounds: int) -> float:
    """An upper bound of epsilon after so many rounds by Renyi's divergences, which are above the accountant's."""
    steps = rounds * int(JOB["settings"]["epochs"]) * BATCHES
    event = PoissonSampledDpEvent(1 / BATCHES, GaussianDpEvent(BUDGET["noise"]))
    return float(RdpAccountant().compose(event, steps).get_epsilon(BUDGET["delta"]))


def test_the_readme_says_what_fifteen_rounds_spend_and_that_a_sixteenth_does_not_fit() -> None:
    readme = (EXAMPLE / "README.md").read_text()
    assert JOB["rounds"] == 15
    spent = float(re.findall(r"budget of every clinic is spent to ([\d.]+) of 2", readme)[0])
    with_another = float(re.findall(r"A sixteenth would make it ([\d.]+)", readme)[0])
    assert spent < BUDGET["epsilon"] < with_another
    assert 0.8 < spent / bound_of(15) < 1
    assert 0.8 < with_another / bound_of(16) < 1


def test_the_job_is_inside_the_owners_ranges_and_no_metric_leaves() -> None:
    assert JOB["settings"].keys() == TASK["settings"].keys()
    limits = TASK["settings"]
    assert all(limits[n][0] <= value <= limits[n][1] for n, value in JOB["settings"].items())
    assert TASK["metrics"] == []


def test_three_rounds_learn_and_release_no_metric(tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    node = Node("demo", log, BIN / "cairn", "demo", "private", "--out", out, "--rounds", "3")
    assert node.ends() == 0
    released = load_file(out / "model.safetensors")
    inputs, labels = load_breast_cancer(return_X_y=True)
    largest = _largest()
    features = 2 * np.sqrt(inputs / largest) - 1
    scores = features @ released["weight"].numpy().T.astype(float) + released["bias"].numpy()
    assert (scores.argmax(axis=1) == labels).mean() > 0.8  # to guess reaches 0.63
    history = (out / "history.jsonl").read_text().splitlines()
    assert len(history) == 3
    assert all('"metrics": {}' in line for line in history)


def _largest() -> np.ndarray:
    """What the data set's documentation prints as the largest of each measurement."""
    rows = re.findall(
        r"^ *[\w ()]+: +[\d.]+ +([\d.]+) *$", load_breast_cancer().DESCR, re.MULTILINE
    )
    assert len(rows) == 30
    return np.array([float(row) for row in rows])
