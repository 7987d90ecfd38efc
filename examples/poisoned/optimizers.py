"""What each optimizer reaches where no hospital is poisoned, but five are as unlike as they are likely to be.

    python optimizers.py [--seeds N]

All in one process, with the optimizers' own code. A seed decides where each patient is, and the initial model: of the
patients of each class, the hospitals have shares that are drawn from Dirichlet(0.5). Updates weigh by their examples.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import prepare
import torch
from compare import EXAMPLE

sys.path.append(str(Path(__file__).parents[1]))  # where the modules are that several examples use
import dirichlet
import rounds

HOSPITALS = [f"hospital-{number}" for number in range(1, 6)]
FEWEST = 20  # patients of a hospital
ROUNDS = 20
NUMBERS = {
    "none": {},
    "sgd": {"lr": 1, "momentum": 0.5},
    "adagrad": {"lr": 0.1},
    "adam": {"lr": 0.05},
    "yogi": {"lr": 0.05},
}


def deal(seed):
    """Which patients each hospital has."""
    return dirichlet.deal(prepare.patients()[1], len(HOSPITALS), FEWEST, seed)


def federated(directory, seed, optimizer):
    for name, rows in zip(HOSPITALS, deal(seed), strict=True):
        prepare.write(directory, name, rows, held_out=len(rows) // 3)
    runners = EXAMPLE.owners(directory, HOSPITALS)
    chosen = rounds.aggregation(optimizer=optimizer, optimizer_numbers=NUMBERS[optimizer])
    return EXAMPLE.measured(
        runners, *EXAMPLE.trained(runners, chosen, seed, ROUNDS, by_examples=True)
    )


def main(directory, seeds):
    for seed in seeds:
        _, labels = prepare.patients()
        sizes = [f"{len(rows)} ({labels[rows].mean():.0%})" for rows in deal(seed)]
        print(f"seed {seed}, patients and how many of them benign: {', '.join(sizes)}")
    print("\n| optimizer | accuracy |", "|---|---|", sep="\n")
    for optimizer, numbers in NUMBERS.items():
        said = "".join(f", {name} {value:g}" for name, value in numbers.items())
        values = [federated(directory, seed, optimizer) for seed in seeds]
        print(f"| {optimizer}{said} | {rounds.cell(values)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        main(Path(name), range(1, arguments.seeds + 1))
