"""The tutorial's files do what the tutorial does, bit for bit."""

import copy
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from cairn.tasks.first_model import first_model
from cairn.tasks.loader import load_task
from cairn.tasks.runner import TaskRunner
from cairn.tasks.state_dict import payload_of, read_state
from cairn.tasks.task import Round, Site

TUTORIAL = Path(__file__).parents[3] / "examples" / "tutorial"
OWNERS = ("bob", "alice")

# The tutorial's own tensors and loop, in plain PyTorch.
DATA = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1.0]])
TARGET = torch.tensor([[0], [0], [1], [1.0]])


def plain_model(rounds: int, steps: int) -> tuple[nn.Linear, list[tuple[float, float]]]:
    torch.manual_seed(1)
    model = nn.Linear(2, 1)
    losses = []
    for _ in range(rounds):
        bobs, alices = copy.deepcopy(model), copy.deepcopy(model)
        bobs_loss = plain_training(bobs, DATA[:2], TARGET[:2], steps)
        alices_loss = plain_training(alices, DATA[2:], TARGET[2:], steps)
        losses.append((bobs_loss, alices_loss))
        with torch.no_grad():
            model.weight.copy_((alices.weight.data + bobs.weight.data) / 2)
            model.bias.copy_((alices.bias.data + bobs.bias.data) / 2)
    return model, losses


def plain_training(model: nn.Linear, data: Tensor, target: Tensor, steps: int) -> float:
    opt = optim.SGD(params=model.parameters(), lr=0.1)
    for _ in range(steps):
        opt.zero_grad()
        loss = ((model(data) - target) ** 2).sum()
        loss.backward()
        opt.step()
    value: float = loss.item()
    return value


def federated_model(job_file: str) -> tuple[dict[str, Tensor], list[tuple[float, ...]]]:
    job = tomllib.loads((TUTORIAL / job_file).read_text())
    task = load_task(str(TUTORIAL / job["model"]))
    schema, base = first_model(task, job["seed"])
    runners = [TaskRunner(task, Site(name, TUTORIAL / "data" / f"{name}.csv")) for name in OWNERS]
    losses = []
    for number in range(1, job["rounds"] + 1):
        this = Round(job["name"], number, job["settings"])
        updates = [bytearray(schema.total_bytes) for _ in runners]
        outcomes = [
            runner.train(this, schema, base, update)
            for runner, update in zip(runners, updates, strict=True)
        ]
        losses.append(tuple(outcome.metrics["loss"] for outcome in outcomes))
        bobs, alices = (read_state(schema, update) for update in updates)
        average = {n: ((bobs[n].double() + alices[n].double()) / 2).float() for n in bobs}
        _, base = payload_of(average)
    return read_state(schema, base), losses


def plain_steps(model: nn.Linear, rounds: int) -> list[float]:
    """Go on with the data of both in one process: each round a step along the gradient of the owners' mean loss."""
    opt = optim.SGD(params=model.parameters(), lr=0.2, momentum=0.5)
    losses = []
    for _ in range(rounds):
        opt.zero_grad()
        loss = ((model(DATA) - TARGET) ** 2).sum() / len(OWNERS)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


def federated_gradients(initial: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[float]]:
    """The job of gradients from this model on; its mean and its steps are those of NumPy and PyTorch."""
    job = tomllib.loads((TUTORIAL / "gradients.toml").read_text())
    optimizer = dict(job["optimizer"])
    assert (job["content"], optimizer.pop("name")) == ("gradients", "sgd")
    task = load_task(str(TUTORIAL / job["model"]))
    runners = [TaskRunner(task, Site(name, TUTORIAL / "data" / f"{name}.csv")) for name in OWNERS]
    model = {name: nn.Parameter(tensor.clone()) for name, tensor in initial.items()}
    opt = optim.SGD(params=model.values(), **optimizer)
    losses = []
    for number in range(1, job["rounds"] + 1):
        schema, base = payload_of(model)
        updates = [bytearray(schema.total_bytes) for _ in runners]
        this = Round(job["name"], number, job["settings"])
        outcomes = [
            runner.gradients(this, schema, base, update)
            for runner, update in zip(runners, updates, strict=True)
        ]
        losses.append(sum(outcome.metrics["loss"] for outcome in outcomes) / len(outcomes))
        parts = [read_state(schema, update) for update in updates]
        for name, parameter in model.items():
            stacked = np.stack([part[name].numpy().astype(np.float64) for part in parts])
            parameter.grad = torch.from_numpy(stacked.mean(axis=0)).float()
        opt.step()
    return {name: parameter.detach() for name, parameter in model.items()}, losses


def test_the_gradients_go_on_as_one_process_with_the_data_of_both_does() -> None:
    model, _ = plain_model(10, 5)
    averaged = ((model(DATA) - TARGET) ** 2).sum().item()
    state, losses = federated_gradients(model.state_dict())
    expected_losses = plain_steps(model, 10)
    assert losses == pytest.approx(expected_losses, rel=1e-3)
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(state[name], expected, rtol=1e-5, atol=1e-6)
    assert ((model(DATA) - TARGET) ** 2).sum().item() < averaged / 1000


@pytest.mark.parametrize(
    ("job_file", "rounds", "steps"), [("job.toml", 10, 5), ("one_average.toml", 1, 10)]
)
def test_the_model_is_the_plain_loops_bit_by_bit(job_file: str, rounds: int, steps: int) -> None:
    expected, expected_losses = plain_model(rounds, steps)
    state, losses = federated_model(job_file)
    assert losses == expected_losses
    assert torch.equal(state["weight"], expected.weight.detach())
    assert torch.equal(state["bias"], expected.bias.detach())


def test_each_owner_prints_its_own_loss(capsys: pytest.CaptureFixture[str]) -> None:
    federated_model("one_average.toml")
    _, [(bobs_loss, alices_loss)] = plain_model(1, 10)
    assert capsys.readouterr().out == (
        f"round 1: loss {bobs_loss:.4f}\nround 1: loss {alices_loss:.4f}\n"
    )


@pytest.mark.parametrize(("rounds", "steps", "gradients"), [(10, 5, 0), (1, 10, 0), (10, 5, 10)])
def test_the_report_is_the_tutorials_last_step_and_the_readme_shows_it(
    tmp_path: Path, rounds: int, steps: int, gradients: int
) -> None:
    model, _ = plain_model(rounds, steps)
    plain_steps(model, gradients)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    done = subprocess.run(
        [sys.executable, str(TUTORIAL / "report.py"), str(tmp_path / "model.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    predictions = model(DATA)
    loss = ((predictions - TARGET) ** 2).sum().item()
    assert f"{[round(value, 4) for value in predictions.flatten().tolist()]}" in done.stdout
    assert f"{TARGET.flatten().tolist()}" in done.stdout
    assert f"{loss:.3g}" in done.stdout
    readme = (TUTORIAL / "README.md").read_text()
    assert "".join(f"    {line}\n" for line in done.stdout.splitlines()) in readme


def test_the_settings_of_all_jobs_are_inside_the_owners_ranges() -> None:
    ranges = tomllib.loads((TUTORIAL / "tasks.toml").read_text())["tasks"]["tutorial"]["settings"]
    for job_file in ("job.toml", "one_average.toml", "gradients.toml"):
        settings = tomllib.loads((TUTORIAL / job_file).read_text())["settings"]
        assert settings.keys() == ranges.keys()
        assert all(ranges[n][0] <= value <= ranges[n][1] for n, value in settings.items())
