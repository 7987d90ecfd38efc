"""Is a tumour benign? A small network on the measurements of one hospital's patients.

The features have scales from 0.001 to 1000 and no hospital knows the others', so the first layer is a
BatchNorm1d, which learns them; its running statistics are averaged like everything else.
"""

import zlib

import numpy as np
import torch
from torch import nn, optim

import cairn

BATCH = 16
TRAITS = (
    *("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity"),
    *("concave points", "symmetry", "fractal dimension"),
)
# Of each trait, over the cells of a tumour: the mean, its standard error, and the mean of the three largest.
MEASUREMENTS = [
    name.format(trait) for name in ("mean {}", "{} error", "worst {}") for trait in TRAITS
]


def model():
    return nn.Sequential(nn.BatchNorm1d(30), nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))


def data(site):
    with np.load(site.data) as file:
        train = torch.tensor(file["train_x"]), torch.tensor(file["train_y"])
        test = torch.tensor(file["test_x"]), torch.tensor(file["test_y"])
    # A seed of this hospital's own, the same every time.
    seed = zlib.crc32(site.name.encode())
    return cairn.Data(
        train=(*train, seed), examples=len(train[1]), test=test, test_examples=len(test[1])
    )


def train(model, data, round):
    inputs, labels, seed = data.train
    torch.manual_seed(seed + round.number)
    opt = optim.SGD(model.parameters(), lr=round.settings["lr"], momentum=0.9)
    losses = []
    for _ in range(int(round.settings["epochs"])):
        # Batches of 16 or a few more: BatchNorm1d cannot train on a left-over of one.
        for batch in torch.randperm(len(labels)).tensor_split(max(1, len(labels) // BATCH)):
            opt.zero_grad()
            scores = model(inputs[batch].to(round.device))
            loss = nn.functional.cross_entropy(scores, labels[batch].to(round.device))
            loss.backward()
            opt.step()
            losses.append(loss.item())
    return {"loss": sum(losses) / len(losses)}


def evaluate(model, data, round):
    inputs, labels = (part.to(round.device) for part in data.test)
    return {"accuracy": (model(inputs).argmax(1) == labels).float().mean().item()}


def columns(data):
    return dict(zip(MEASUREMENTS, data.train[0].T, strict=True))


task = cairn.Task(model=model, data=data, train=train, evaluate=evaluate, columns=columns)
