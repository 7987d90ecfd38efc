"""The tutorial's training, and its gradients: a linear model on the owner's own two rows.

Every owner has read this file and runs its own copy of it. Its data and what it prints stay with it.
"""

import numpy as np
import torch
from torch import nn, optim

import cairn


def model():
    return nn.Linear(2, 1)


def data(site):
    table = np.loadtxt(site.data, delimiter=",", skiprows=1, dtype=np.float32, ndmin=2)
    rows = torch.tensor(table[:, :2]), torch.tensor(table[:, 2:])
    return cairn.Data(train=rows, examples=len(table))


def train(model, data, round):
    inputs, targets = (rows.to(round.device) for rows in data.train)
    opt = optim.SGD(model.parameters(), lr=round.settings["lr"])
    for _ in range(int(round.settings["steps"])):
        opt.zero_grad()
        loss = ((model(inputs) - targets) ** 2).sum()
        loss.backward()
        opt.step()
    print(f"round {round.number}: loss {loss.item():.4f}", flush=True)
    return {"loss": loss.item()}


def gradients(model, data, round):
    inputs, targets = (rows.to(round.device) for rows in data.train)
    loss = ((model(inputs) - targets) ** 2).sum()
    loss.backward()
    print(f"round {round.number}: loss {loss.item():.6f}", flush=True)
    return {"loss": loss.item()}


task = cairn.Task(model=model, data=data, train=train, gradients=gradients)
