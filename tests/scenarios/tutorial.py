"""The tutorial in plain PyTorch: what its federation has to come to, to the bit."""

import copy
import csv

import torch
from torch import nn, optim

from tests.scenarios.processes import ROOT

TUTORIAL = ROOT / "examples/tutorial"
State = dict[str, torch.Tensor]


def rows_of(owner: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One owner's inputs and targets."""
    rows = list(csv.reader((TUTORIAL / f"data/{owner}.csv").read_text().splitlines()))[1:]
    table = torch.tensor([[float(value) for value in row] for row in rows])
    return table[:, :2], table[:, 2:]


def plain_training(model: nn.Linear, owner: str) -> None:
    """The tutorial's loop over one owner's rows, in plain PyTorch."""
    data, target = rows_of(owner)
    opt = optim.SGD(params=model.parameters(), lr=0.1)
    for _ in range(5):
        opt.zero_grad()
        loss = ((model(data) - target) ** 2).sum()
        loss.backward()
        opt.step()


def plain_loop(initial: State, rounds: int) -> State:
    """The whole tutorial in one process: train two copies, average them, and again."""
    model = nn.Linear(2, 1)
    model.load_state_dict(initial)
    for _ in range(rounds):
        bobs, alices = copy.deepcopy(model), copy.deepcopy(model)
        plain_training(bobs, "bob")
        plain_training(alices, "alice")
        with torch.no_grad():
            model.weight.copy_((alices.weight.data + bobs.weight.data) / 2)
            model.bias.copy_((alices.bias.data + bobs.bias.data) / 2)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}
