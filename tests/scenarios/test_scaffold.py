"""SCAFFOLD in a federation of real processes: c travels as tensors of the job, c_i lasts at each owner."""

from collections.abc import Callable

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from tests.scenarios.federation import Federation

MakeFederation = Callable[..., Federation]

TWO = {"alice": 1.0, "bob": -3.0}
CURVATURE = {"alice": 0.5, "bob": 2.0}
ROUNDS, STEPS, LR = 4, 3, 0.125

# Minimises curvature / 2 * (w - value)^2, so that the two owners pull towards other values, and not equally hard.
TASK = f"""
import torch
from torch import nn

import cairn

CURVATURE = {CURVATURE}


def model():
    return cairn.control_variates(nn.Linear(2, 1))


def data(site):
    value = float((site.data / "value").read_text())
    return cairn.Data(train=(CURVATURE[site.name], value), examples=1)


def train(model, data, round):
    curvature, value = data.train
    optimizer = torch.optim.SGD(model.parameters(), lr=round.settings["lr"])
    cairn.scaffold(optimizer, model)
    for _ in range({STEPS}):
        optimizer.zero_grad()
        sum(curvature / 2 * (w - value).square().sum() for w in model.parameters()).backward()
        optimizer.step()


task = cairn.Task(model=model, data=data, train=train, keeps=("scaffold_c_own/*",))
"""


def algorithm(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The paper's algorithm 1 with option II, both owners in every round: x and c."""
    c, own = np.zeros_like(x), {owner: np.zeros_like(x) for owner in TWO}
    for _ in range(ROUNDS):
        trained, changes = [], []
        for owner, value in TWO.items():
            y = x.copy()
            for _ in range(STEPS):
                y -= LR * (CURVATURE[owner] * (y - value) - own[owner] + c)
            new = own[owner] - c + (x - y) / (STEPS * LR)
            trained.append(y)
            changes.append(new - own[owner])
            own[owner] = new
        x, c = np.mean(trained, axis=0), c + np.mean(changes, axis=0)
    return x, c


def test_a_job_with_control_variates_is_the_papers_algorithm(federate: MakeFederation) -> None:
    federation = federate(TWO)
    (federation.home / "task.py").write_text(TASK)
    federation.aggregator()
    federation.owners()
    coordinator = federation.coordinator(
        model="task.py", seed=3, rounds=ROUNDS, settings={"lr": LR}
    )
    assert coordinator.ends() == 0, coordinator.output()
    assert [line["contributors"] for line in federation.history()] == [2] * ROUNDS

    model = load_file(federation.out / "model.safetensors")
    assert len(model) == 4
    torch.manual_seed(3)
    for name, initial in nn.Linear(2, 1).named_parameters():
        x, c = algorithm(initial.detach().numpy().astype(np.float64))
        torch.testing.assert_close(model[name], torch.from_numpy(x).float())
        torch.testing.assert_close(model[f"scaffold_c/{name}"], torch.from_numpy(c).float())
