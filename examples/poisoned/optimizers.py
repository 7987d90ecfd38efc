"""What each optimizer reaches where no hospital is poisoned, but five are as unlike as they are likely to be.

    python optimizers.py [--seeds N]

All in one process, with the optimizers' own code. A seed decides where each patient is, and the initial model: of the
patients of each class, the hospitals have shares that are drawn from Dirichlet(0.5) (Yurochkin et al. 2019,
arXiv:1905.12022, section 4). Updates weigh by their examples.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import prepare
import rounds
import torch
from compare import cell

HOSPITALS = [f"hospital-{number}" for number in range(1, 6)]
CONCENTRATION = 0.5
FEWEST = 20  # patients of a hospital; and none has half of all, as its weight would be capped
ROUNDS = 20
NUMBERS = {
    "none": {},
    "sgd": {"lr": 1, "momentum": 0.5},
    "adagrad": {"lr": 0.1},
    "adam": {"lr": 0.05},
    "yogi": {"lr": 0.05},
}


def deal(seed):
    """Which patients each hospital has; drawn again until each has enough, and none too many."""
    _, labels = prepare.patients()
    random = np.random.default_rng(seed)
    while True:
        classes = [split(random, np.flatnonzero(labels == label)) for label in (0, 1)]
        shares = [random.permutation(np.concatenate(parts)) for parts in zip(*classes, strict=True)]
        sizes = [len(share) for share in shares]
        if min(sizes) >= FEWEST and max(sizes) < len(labels) / 2:
            return shares


def split(random, rows):
    shares = random.dirichlet([CONCENTRATION] * len(HOSPITALS))
    return np.split(random.permutation(rows), (np.cumsum(shares)[:-1] * len(rows)).astype(int))


def federated(directory, seed, optimizer):
    for name, rows in zip(HOSPITALS, deal(seed), strict=True):
        prepare.write(directory, name, rows, held_out=len(rows) // 3)
    runners = rounds.owners(directory, HOSPITALS)
    chosen = rounds.aggregation(optimizer=optimizer, optimizer_numbers=NUMBERS[optimizer])
    return rounds.accuracy(
        runners, *rounds.trained(runners, chosen, seed, ROUNDS, by_examples=True)
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
        print(f"| {optimizer}{said} | {cell(values)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        main(Path(name), range(1, arguments.seeds + 1))
