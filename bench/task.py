"""The task of the benchmark, which trains nothing: an owner adds its number to the model's first element.

So the average of every round is known, and one lost, doubled or stale update shows in it. Beside this
file lies `elements`, a text: how many elements the model's parameters have, one number for each.
"""

from pathlib import Path

import torch
from torch import nn

import cairn


def model() -> nn.Module:
    elements = Path(__file__).with_name("elements").read_text(encoding="utf-8").split()
    # Uninitialised memory costs nothing until it is touched, and it is not: the weights lie elsewhere.
    return nn.ParameterList(nn.Parameter(torch.empty(int(count))) for count in elements)


def data(site: cairn.Site) -> cairn.Data:
    number = int(site.name.removeprefix("owner"))
    return cairn.Data(train=number, examples=number)


def train(model: nn.Module, data: cairn.Data, round: cairn.Round) -> dict[str, float]:  # noqa: A002, ARG001 - the contract's own words
    with torch.no_grad():
        next(model.parameters())[0] += data.train
    return {}


task = cairn.Task(model=model, data=data, train=train)
