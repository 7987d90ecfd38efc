"""What keeping the norms is worth: FedBN beside the plain mean, all data in one place, and each office alone.

    python compare.py [--seeds N] [--rounds N] [--scanners own|same ...]

All in one process, by the aggregator's own mean. A seed decides which digits each office has, and the initial model.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import prepare
import torch

sys.path.append(str(Path(__file__).parents[1]))  # where the modules are that several examples use
import rounds

KEPT = rounds.Example(Path(__file__).parent)
SHARED = rounds.Example(Path(__file__).parent, task=replace(KEPT.task, keeps=None))


def federated(example, directory, seed):
    owners = example.owners(directory)
    return example.measured(owners, *example.trained(owners, seed=seed))


def central(directory, seed):
    """All offices' digits in one place, as those of one office."""
    files = [np.load(directory / f"{name}.npz") for name in KEPT.job["owners"]]
    np.savez(
        directory / "everyone.npz",
        **{key: np.concatenate([file[key] for file in files]) for key in files[0]},
    )
    (everyone,) = SHARED.owners(directory, ["everyone"])
    return SHARED.measured([everyone], *SHARED.alone(everyone, seed))


def local(directory, seed):
    """Each office by itself: on its own held-out digits, together, and on everybody's, on average."""
    owners = SHARED.owners(directory)
    models = [SHARED.alone(owner, seed) for owner in owners]
    on_own = [SHARED.measured([owner], *model) for owner, model in zip(owners, models, strict=True)]
    counts = [len(np.load(directory / f"{owner.name}.npz")["test_y"]) for owner in owners]
    return np.average(on_own, weights=counts), mean(
        SHARED.measured(owners, *model) for model in models
    )


def reached(directory, seed):
    """The accuracy of each way to train, by its name."""
    own, everybodys = local(directory, seed)
    return {
        "central": central(directory, seed),
        "FedBN": federated(KEPT, directory, seed),
        "mean": federated(SHARED, directory, seed),
        "local only, on its own": own,
        "local only, on everybody's": everybodys,
    }


def main(directory, seeds, scanners):
    for which in scanners:
        columns = {}
        for seed in seeds:
            prepare.main(directory, which, seed)
            for name, value in reached(directory, seed).items():
                columns.setdefault(name, []).append(value)
        print(f"| scanners: {which} | accuracy |", "|---|---|", sep="\n")
        for name, values in columns.items():
            print(f"| {name} | {rounds.cell(values)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--rounds", type=int, default=KEPT.job["rounds"], metavar="N")
    parser.add_argument("--scanners", nargs="+", choices=["own", "same"], default=["own", "same"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    KEPT.job["rounds"] = SHARED.job["rounds"] = arguments.rounds
    with tempfile.TemporaryDirectory() as name:
        main(Path(name), range(1, arguments.seeds + 1), arguments.scanners)
