"""Reads digits that lie on their side: a public network stays frozen, and only its adapters travel.

The network was trained on upright digits (`pretrain.py`), and every office has the same copy of it beside
this file. What an office trains, and exchanges, is a low-rank adapter for each layer (LoRA, arXiv
2106.09685) and a new head.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn, optim

import cairn

PRETRAINED = Path(__file__).with_name("pretrained.safetensors")
RANK = 4
BATCH = 16


class Adapted(nn.Linear):
    """A frozen layer plus a product of two thin matrices, which is zero to begin with."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.lora_a = nn.Parameter(torch.randn(RANK, inputs) / inputs**0.5)
        self.lora_b = nn.Parameter(torch.zeros(outputs, RANK))

    def forward(self, rows):
        return super().forward(rows) + rows @ self.lora_a.T @ self.lora_b.T


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = Adapted(64, 64)
        self.second = Adapted(64, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, images):
        return self.head(self.second(self.first(images).relu()).relu())


def model():
    reader = Reader()
    frozen = load_file(PRETRAINED)
    reader.load_state_dict(frozen, strict=False)
    for name, parameter in reader.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return reader


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
    inputs, labels, seed = data.train
    torch.manual_seed(seed + round.number)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    opt = optim.SGD(trained, lr=round.settings["lr"], momentum=0.9)
    losses = []
    for _ in range(int(round.settings["epochs"])):
        for batch in torch.randperm(len(labels)).split(BATCH):
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


task = cairn.Task(
    model=model,
    data=data,
    train=train,
    evaluate=evaluate,
    exchanges=("*.lora_?", "head.*"),
)
