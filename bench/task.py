"""The task of the benchmark, which trains nothing: an owner adds its number to the model's first element.

So the average of every round is known, and one lost, doubled or stale update shows in it. Beside this
file lies `elements`, a text: how many elements the model's parameters have, one number for each. Where `OWNER.noise` lies there,
float32 values, the owner adds these to every parameter instead, over and over.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

import cairn


def model() -> nn.Module:
    elements = Path(__file__).with_name("elements").read_text(encoding="utf-8").split()
    # Uninitialised memory costs nothing until it is touched, and it is not: the weights lie elsewhere.
    return nn.ParameterList(nn.Parameter(torch.empty(int(count))) for count in elements)


def data(site: cairn.Site) -> cairn.Data:
    number = int(site.name.removeprefix("owner"))
    noise = Path(__file__).with_name(f"{site.name}.noise")
    if noise.exists():
        return cairn.Data(train=torch.from_numpy(np.fromfile(noise, "<f4")), examples=number)
    return cairn.Data(train=torch.tensor([float(number)]), examples=number)


def train(model: nn.Module, data: cairn.Data, round: cairn.Round) -> dict[str, float]:  # noqa: A002, ARG001 - the contract's own words
    added: torch.Tensor = data.train
    with torch.no_grad():
        if len(added) == 1:
            next(model.parameters())[:1] += added
            return {}
        for parameter in model.parameters():
            for part in torch.split(parameter, len(added)):
                part.add_(added[: len(part)])
    return {}


task = cairn.Task(model=model, data=data, train=train)
