"""The hospitals of a trial fit the Cox model that all their patients in one place give.

All but the last test read the trial's table, which comes with lifelines.
"""

import json
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn, optim

from tests.scenarios.processes import Node
from tests.warm.start import BIN

EXAMPLE = Path(__file__).parents[3] / "examples" / "actg175"
JOBS = {name: tomllib.loads((EXAMPLE / name).read_text()) for name in ("job.toml", "mean.toml")}
needs_lifelines = pytest.mark.skipif(
    find_spec("lifelines") is None,
    reason="the trial's table comes with lifelines, which is not installed: pip install 'cairn[trial]'",
)


def run_script(name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", str(EXAMPLE / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_lifelines
def test_federated_gradients_give_the_hazard_ratios_that_lifelines_gives_for_all_data() -> None:
    printed = run_script("compare.py", "--seeds", "1")
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) .*\| ([\d.]+)% \|$", printed, re.MULTILINE)
    far = {name: float(distance) for name, _, distance in rows}
    concordance = {name: float(value) for name, value, _ in rows}
    assert far["federated gradients"] < 1
    assert far["local only"] > 20
    assert concordance["federated gradients"] > concordance["local only"]
    assert concordance["federated gradients"] == pytest.approx(
        concordance["central, a baseline each"], abs=0.002
    )


def breslow_loss(scores: Tensor, days: Tensor, events: Tensor) -> Tensor:
    """The mean negative log partial likelihood of one hospital, patient by patient."""
    terms = [
        torch.log(torch.exp(scores[days >= day]).sum()) - score
        for score, day, event in zip(scores, days, events, strict=True)
        if event
    ]
    return torch.stack(terms).sum() / len(scores)


@needs_lifelines
def test_three_rounds_of_real_processes_are_three_steps_of_adam_on_the_stratified_model(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    command = ("demo", "actg175", "--out", out, "--rounds", "3")
    assert Node("demo", tmp_path / "demo.log", BIN / "cairn", *command).ends() == 0
    hospitals = []
    for name in JOBS["job.toml"]["owners"]:
        with np.load(out / "data" / f"{name}.npz") as file:
            part = [torch.tensor(file[f"train_{what}"]) for what in ("x", "days", "events")]
            hospitals.append((part[0].double(), *part[1:]))
    patients = sum(len(inputs) for inputs, _, _ in hospitals)
    layer = nn.Linear(15, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    opt = optim.Adam(layer.parameters(), lr=0.1, betas=(0.9, 0.99), eps=1e-3)
    for _ in range(3):
        opt.zero_grad()
        for inputs, days, events in hospitals:
            loss = breslow_loss(layer(inputs).flatten(), days, events)
            share = loss * len(inputs) / patients
            share.backward()  # type: ignore[no-untyped-call]  # not annotated in PyTorch
        opt.step()
    released = load_file(out / "model.safetensors")["weight"]
    torch.testing.assert_close(released.double(), layer.weight.detach(), rtol=1e-4, atol=1e-5)
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [line["contributors"] for line in history] == [5, 5, 5]


@needs_lifelines
def test_every_patient_is_in_one_hospital_held_out_or_not(tmp_path: Path) -> None:
    run_script("prepare.py", str(tmp_path))
    rows = 0
    events = 0
    for name in JOBS["job.toml"]["owners"]:
        with np.load(tmp_path / f"{name}.npz") as file:
            rows += len(file["train_x"]) + len(file["test_x"])
            events += int(file["train_events"].sum() + file["test_events"].sum())
    assert (rows, events) == (2139, 521)  # Hammer et al. 1996


@needs_lifelines
def test_the_concordance_is_that_of_lifelines_ties_and_all() -> None:
    compared = """
import sys
import numpy as np, torch
from lifelines.utils import concordance_index
from cairn.tasks.loader import load_task
load_task(sys.argv[1])
import task
random = np.random.default_rng(1)
for _ in range(5):
    days = random.integers(1, 40, 60).astype(np.float32)
    events = random.random(60) < 0.5
    scores = random.integers(0, 12, 60).astype(np.float32)
    ours = task.concordance(*map(torch.tensor, (scores, days, events))).item()
    print(abs(ours - concordance_index(days, -scores, events)))
"""
    command = [sys.executable, "-W", "ignore", "-c", compared, str(EXAMPLE / "task.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(printed.split()) == 5
    assert max(map(float, printed.split())) < 1e-6


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_the_jobs_are_inside_the_owners_ranges(job: dict[str, dict[str, float]]) -> None:
    ranges = tomllib.loads((EXAMPLE / "tasks.toml").read_text())["tasks"]["actg175"]["settings"]
    assert job["settings"].keys() == ranges.keys()
    assert all(ranges[n][0] <= value <= ranges[n][1] for n, value in job["settings"].items())
