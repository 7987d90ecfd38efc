"""Three of nine hospitals are poisoned: the mean fails, and robust rules hold."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.scenarios.examples.scripts import run_script

EXAMPLE = Path(__file__).parents[3] / "examples" / "poisoned"
JOBS = {name: tomllib.loads((EXAMPLE / name).read_text()) for name in ("job.toml", "mean.toml")}
HELD = [
    "norm_bounded_mean",
    "trimmed_mean",
    "multi_krum",
    "geometric_median",
    "centred_clipping",
]


def table(text: str) -> dict[str, float]:
    """The first number of each row, by the row's name."""
    rows = re.findall(r"^\| (\w+).*? \| ([\d.]+) ", text, re.MULTILINE)
    return {name: float(number) for name, number in rows}


def test_the_mean_fails_where_robust_rules_hold() -> None:
    arguments = ("--seeds", "1", "--attack", "sign_flip_x10", "--rule", "mean", *HELD)
    command = [sys.executable, str(EXAMPLE / "compare.py"), *arguments]
    reached = table(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert reached.keys() == {"mean", *HELD}
    assert reached.pop("mean") < 0.8
    assert min(reached.values()) > 0.93


def test_the_readme_states_of_each_rule_whether_it_holds() -> None:
    readme = (EXAMPLE / "README.md").read_text()
    for rule in HELD:
        (row,) = re.findall(rf"^\| `{rule}`.*$", readme, re.MULTILINE)
        worst = [float(low) for low in re.findall(r"\(([\d.]+) to", row)]
        assert len(worst) == 5
        assert min(worst) > 0.93


def test_a_poisoned_hospital_differs_in_what_the_attack_says_and_in_nothing_else(
    tmp_path: Path,
) -> None:
    attacks = ("none", "label_flip_x10", "sign_flip")
    for attack in attacks:
        run_script(EXAMPLE / "prepare.py", tmp_path / attack, "--attack", attack)
    for number in range(1, 10):
        files = [np.load(tmp_path / attack / f"hospital-{number}.npz") for attack in attacks]
        honest, flipped, negated = [{key: file[key] for key in file} for file in files]
        for file in files:
            file.close()
        is_poisoned = number > 6
        labels = 1 - honest["train_y"] if is_poisoned else honest["train_y"]
        assert np.array_equal(flipped["train_y"], labels)
        assert np.array_equal(negated["train_y"], honest["train_y"])
        times = [float(file["times"]) for file in (honest, flipped, negated)]
        assert times == ([1, 10, -1] if is_poisoned else [1, 1, 1])
        for key in ("train_x", "test_x", "test_y"):
            assert np.array_equal(honest[key], flipped[key])
            assert np.array_equal(honest[key], negated[key])


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_the_jobs_are_inside_the_owners_ranges(job: dict[str, dict[str, float]]) -> None:
    tasks = tomllib.loads((EXAMPLE / "tasks.toml").read_text())["tasks"]
    ranges = tasks[job["task"]]["settings"]
    assert all(ranges[n][0] <= value <= ranges[n][1] for n, value in job["settings"].items())


def test_the_jobs_differ_in_the_rule_alone() -> None:
    robust, mean = ({**job, "name": "", "rule": {}} for job in JOBS.values())
    assert robust == mean
