"""Which of four therapies keeps HIV patients well for longer? A Cox model of the patients of one hospital.

The model is one linear layer: its outputs are log hazards, its weights log hazard ratios. Every hospital compares its own
patients only with one another, as the analysis of a trial with several centres does (a stratified Cox model: each hospital
has a baseline hazard of its own, which never leaves). So the sum of the hospitals' losses is the loss of that
model over all patients, and their averaged gradients lead to the weights that one gets from all data in one place.
"""

import numpy as np
import torch
from torch import nn, optim

import cairn

COVARIATES = 15


def model():
    layer = nn.Linear(COVARIATES, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def part_of(file, name):
    """The patients of a part, the longest observed first: their covariates, days and events."""
    order = np.argsort(-file[f"{name}_days"], kind="stable")
    return tuple(torch.tensor(file[f"{name}_{what}"][order]) for what in ("x", "days", "events"))


def data(site):
    with np.load(site.data) as file:
        train, test = part_of(file, "train"), part_of(file, "test")
    return cairn.Data(train=train, examples=len(train[1]), test=test, test_examples=len(test[1]))


def cox_loss(scores, days, events):
    """The negative log of Cox's partial likelihood, by Breslow where days are tied, over the number of patients.

    The patients lie in the order of their days, the longest first.
    """
    at_risk = torch.logcumsumexp(scores, 0)
    last_tied = torch.searchsorted(-days, -days, right=True) - 1
    return (at_risk[last_tied] - scores)[events].sum() / len(scores)


def concordance(scores, days, events):
    """Of the pairs of patients of whom one is known to stay well for longer, the share that the scores order so; ties are half."""
    pairs = events[:, None] & ((days[:, None] < days) | ((days[:, None] == days) & ~events))
    higher = torch.sign(scores[:, None] - scores)[pairs]
    return (higher.mean() + 1) / 2


def loss_of(model, data, device):
    inputs, days, events = (part.to(device) for part in data)
    return cox_loss(model(inputs).flatten(), days, events)


def gradients(model, data, round):
    loss = loss_of(model, data.train, round.device)
    loss.backward()
    return {"loss": loss.item()}


def train(model, data, round):
    opt = optim.SGD(model.parameters(), lr=round.settings["lr"], momentum=0.9)
    for _ in range(int(round.settings["steps"])):
        opt.zero_grad()
        loss = loss_of(model, data.train, round.device)
        loss.backward()
        opt.step()
    return {"loss": loss.item()}


def evaluate(model, data, round):
    inputs, days, events = (part.to(round.device) for part in data.test)
    return {"concordance": concordance(model(inputs).flatten(), days, events).item()}


task = cairn.Task(model=model, data=data, train=train, gradients=gradients, evaluate=evaluate)
