"""Reads digits from the scanner of one office: a small CNN whose BatchNorm layers stay with the office (FedBN).

Each office's scanner is another, and what a BatchNorm layer learns is above all how bright and how rich in contrast
its inputs are: averaged over scanners, that fits none of them. So the convolutions and the head travel, and the norms are kept
(Li et al. 2021, arXiv 2102.07623).
"""

import zlib

import numpy as np
import torch
from torch import nn, optim

import cairn

BATCH = 32


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, images):
        return self.norm(self.conv(images)).relu()


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = Block(1, 16)
        self.second = Block(16, 32)
        self.head = nn.Linear(32 * 4 * 4, 10)

    def forward(self, images):
        seen = nn.functional.max_pool2d(self.second(self.first(images)), 2)
        return self.head(seen.flatten(1))


def model():
    return Reader()


def data(site):
    with np.load(site.data) as file:
        train = torch.tensor(file["train_x"]), torch.tensor(file["train_y"])
        test = torch.tensor(file["test_x"]), torch.tensor(file["test_y"])
    # A seed of this office's own, the same every time.
    seed = zlib.crc32(site.name.encode())
    return cairn.Data(
        train=(*train, seed), examples=len(train[1]), test=test, test_examples=len(test[1])
    )


def train(model, data, round):
    images, labels, seed = data.train
    torch.manual_seed(seed + round.number)
    opt = optim.SGD(model.parameters(), lr=round.settings["lr"], momentum=0.9)
    losses = []
    for _ in range(int(round.settings["epochs"])):
        for batch in torch.randperm(len(labels)).split(BATCH):
            opt.zero_grad()
            scores = model(images[batch].to(round.device))
            loss = nn.functional.cross_entropy(scores, labels[batch].to(round.device))
            loss.backward()
            opt.step()
            losses.append(loss.item())
    return {"loss": sum(losses) / len(losses)}


def evaluate(model, data, round):
    images, labels = (part.to(round.device) for part in data.test)
    return {"accuracy": (model(images).argmax(1) == labels).float().mean().item()}


task = cairn.Task(
    model=model,
    data=data,
    train=train,
    evaluate=evaluate,
    keeps=("*.norm.*",),
)
