"""FedProx, by the one line of a task, in a federation of real processes."""

from collections.abc import Callable

import numpy as np
import torch
from safetensors.torch import load_file

from tests.scenarios.federation import Federation

MakeFederation = Callable[..., Federation]

TWO = {"alice": 1.0, "bob": -3.0}
ROUNDS, STEPS, LR, MU = 3, 4, 0.125, 0.5

# Minimises the distance of the weights from the owner's own value: its gradient is w - value.
TASK = f"""
import torch
from torch import nn

import cairn


def model():
    return nn.Linear(2, 1)


def data(site):
    return cairn.Data(train=float((site.data / "value").read_text()), examples=1)


def train(model, data, round):
    optimizer = torch.optim.SGD(model.parameters(), lr=round.settings["lr"])
    cairn.prox(optimizer, round.settings["mu"])
    for _ in range({STEPS}):
        optimizer.zero_grad()
        sum((w - data.train).square().sum() / 2 for w in model.parameters()).backward()
        optimizer.step()


task = cairn.Task(model=model, data=data, train=train)
"""


def test_a_job_of_owners_that_are_pulled_back_is_that_of_the_papers_update_rule(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    (federation.home / "task.py").write_text(TASK)
    for owner in TWO:
        federation.edit(owner, "lr = [0.0, 1.0]", "lr = [0.0, 1.0]\nmu = [0.0, 1.0]")
    federation.aggregator()
    federation.owners()
    coordinator = federation.coordinator(rounds=ROUNDS, settings={"lr": LR, "mu": MU})
    assert coordinator.ends() == 0, coordinator.output()

    model = load_file(federation.out / "model.safetensors")
    for name, initial in federation.initial.items():
        base = initial.numpy().astype(np.float64)
        for _ in range(ROUNDS):
            trained = []
            for value in TWO.values():
                w = base.copy()
                for _ in range(STEPS):
                    w -= LR * ((w - value) + MU * (w - base))
                trained.append(w)
            base = np.mean(trained, axis=0)
        torch.testing.assert_close(model[name], torch.from_numpy(base).float())
