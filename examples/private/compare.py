"""Accuracy against epsilon: the job of this folder at several budgets, and without privacy, from five first models each.

    python compare.py DATA_DIR

Runs the rounds in one process: the tasks as an owner's node runs them, and the plain mean of their updates. Each
model is measured on the held-out patients of all clinics.
"""

import argparse
import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import task
import torch
from dp_accounting import (
    ExplicitBracketInterval,
    GaussianDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
    calibrate_dp_mechanism,
)
from dp_accounting.pld import PLDAccountant
from torch import optim
from torch.utils.data import DataLoader

import cairn
from cairn.tasks.first_model import first_model
from cairn.tasks.private import Privacy
from cairn.tasks.runner import TaskRunner
from cairn.tasks.state_dict import read_state

JOB = tomllib.loads((Path(__file__).parent / "job.toml").read_text(encoding="utf-8"))
DELTA, CLIP = 1e-3, 1.0
EPSILONS = [0.5, 1.0, 2.0, 4.0, 8.0]
SEEDS = range(1, 6)
BRACKET = ExplicitBracketInterval(1.0, 50.0)  # with less noise the accounting would take minutes
STEPS = JOB["rounds"] * int(JOB["settings"]["epochs"]) * task.BATCHES


def noise_for(epsilon):
    """The noise multiplier with which the whole job makes this epsilon."""
    accountant = partial(PLDAccountant, value_discretization_interval=1e-3)

    def event(noise):
        return SelfComposedDpEvent(
            PoissonSampledDpEvent(1 / task.BATCHES, GaussianDpEvent(noise)), STEPS
        )

    return calibrate_dp_mechanism(accountant, event, epsilon, DELTA, BRACKET, tol=0.01)


def federated(sites, seed, train):
    """The bytes of the model after the job, whose owners count the same."""
    schema, model = first_model(task.task, seed)
    for number in range(1, JOB["rounds"] + 1):
        this = cairn.Round(JOB["name"], number, JOB["settings"])
        total = np.zeros(schema.total_bytes // 4)
        for site in sites:
            update = bytearray(model)
            train(site, this, schema, update)
            total += np.frombuffer(update, np.float32)
        model = bytearray((total / len(sites)).astype(np.float32).tobytes())
    return read_state(schema, model)


def privately(noise, site, this, schema, update):
    privacy = Privacy(noise, CLIP, lambda _rate, _steps: None)
    TaskRunner(task.task, site).train(this, schema, bytearray(update), update, privacy=privacy)


def plainly(site, this, schema, update):
    """The same loop, with batches of a fixed size and without clipping or noise."""
    model, rows = task.model(), task.data(site).train
    model.load_state_dict(read_state(schema, bytearray(update)))
    torch.manual_seed(this.number)
    optimizer = optim.SGD(model.parameters(), lr=this.settings["lr"])
    loader = DataLoader(rows, batch_size=-(-len(rows) // task.BATCHES), shuffle=True)
    task.loop(model, optimizer, loader, int(this.settings["epochs"]))
    for name, slot in read_state(schema, update).items():
        slot.copy_(model.state_dict()[name])


def accuracy(sites, state):
    model = task.model()
    model.load_state_dict(state)
    tests = [task.data(site).test for site in sites]
    inputs, labels = (torch.cat(parts) for parts in zip(*tests, strict=True))
    with torch.no_grad():
        return (model(inputs).argmax(1) == labels).float().mean().item()


def main(directory):
    sites = [cairn.Site(name, directory / f"{name}.npz") for name in JOB["owners"]]
    print("epsilon   noise   accuracy: mean, lowest, highest", flush=True)
    for epsilon in [*EPSILONS, None]:
        noise = None if epsilon is None else noise_for(epsilon)
        train = plainly if epsilon is None else partial(privately, noise)
        reached = [accuracy(sites, federated(sites, seed, train)) for seed in SEEDS]
        words = "none          -" if epsilon is None else f"{epsilon:<7g} {noise:7.2f}"
        print(
            f"{words}   {np.mean(reached):.3f}  {min(reached):.3f}  {max(reached):.3f}", flush=True
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DATA_DIR")
    main(parser.parse_args().directory)
