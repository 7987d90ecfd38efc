"""Is a tumour benign? A small network on the measurements of one hospital's patients; some hospitals cheat.

What a cheating hospital does stands in its data: false labels, and `times`, by which it multiplies its step.

There is no BatchNorm: its running statistics would be elements of the update like all others. Rules that compare
updates by distance would see little else, where they are large, and an adaptive optimizer changes every element by about
as much, large or small.
"""

import zlib

import numpy as np
import torch
from torch import nn, optim

import cairn

BATCH = 14


def model():
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))


def data(site):
    with np.load(site.data) as file:
        train = torch.tensor(file["train_x"]), torch.tensor(file["train_y"])
        test = torch.tensor(file["test_x"]), torch.tensor(file["test_y"])
        times = float(file["times"])
    # A seed of this hospital's own, the same every time.
    seed = zlib.crc32(site.name.encode())
    return cairn.Data(
        train=(*train, seed, times), examples=len(train[1]), test=test, test_examples=len(test[1])
    )


def train(model, data, round):
    inputs, labels, seed, times = data.train
    before = [weights.detach().clone() for weights in model.parameters()]
    torch.manual_seed(seed + round.number)
    opt = optim.SGD(model.parameters(), lr=round.settings["lr"], momentum=0.9)
    for _ in range(int(round.settings["epochs"])):
        for batch in torch.randperm(len(labels)).split(BATCH):
            opt.zero_grad()
            scores = model(inputs[batch].to(round.device))
            nn.functional.cross_entropy(scores, labels[batch].to(round.device)).backward()
            opt.step()
    if times != 1:
        with torch.no_grad():
            for weights, old in zip(model.parameters(), before, strict=True):
                weights.copy_(old + times * (weights - old))


def evaluate(model, data, round):
    inputs, labels = (part.to(round.device) for part in data.test)
    return {"accuracy": (model(inputs).argmax(1) == labels).float().mean().item()}


task = cairn.Task(model=model, data=data, train=train, evaluate=evaluate)
