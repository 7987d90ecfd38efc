"""What the publishers reach together, all data in one place, and each one alone.

    python compare.py [--seeds N] [--first SEED]

All in one process, by the aggregator's own mean. With all data in one place a step is on four times as many sentences, so
that there are as many steps as a publisher makes on average, and as many passes over the data. A seed decides which sentences
there are and where, and the initial adapters and head.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import mean

import prepare
import torch

sys.path.append(str(Path(__file__).parents[1]))  # where the modules are that several examples use
import rounds

EXAMPLE = rounds.Example(Path(__file__).parent)
CENTRAL = rounds.Example(Path(__file__).parent)
CENTRAL.job["settings"]["batch"] *= len(prepare.PUBLISHERS)


def pooled(directory):
    """All publishers' sentences in one place, as those of one publisher."""
    files = [
        json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        for name in prepare.PUBLISHERS
    ]
    together = {key: [value for file in files for value in file[key]] for key in files[0]}
    (directory / "everyone.json").write_text(json.dumps(together), encoding="utf-8")
    (everyone,) = CENTRAL.owners(directory, ["everyone"], suffix="json")
    return everyone


def reached(directory, seed):
    """The accuracy of each way to train, by its name."""
    owners, everyone = EXAMPLE.owners(directory, suffix="json"), pooled(directory)
    alone = (EXAMPLE.alone(owner, seed) for owner in owners)
    models = {
        "all data in one place": [CENTRAL.alone(everyone, seed)],
        "federated": [EXAMPLE.trained(owners, seed=seed)],
        "each publisher alone": alone,
    }
    for name, trained in models.items():
        yield name, mean(EXAMPLE.measured([everyone], *model) for model in trained)


def main(directory, seeds):
    columns = {}
    for seed in seeds:
        prepare.main(directory, seed)
        for name, value in reached(directory, seed):
            columns.setdefault(name, []).append(value)
            print(f"seed {seed}, {name}: {value:.3f}", flush=True)
    print("\n| | accuracy |", "|---|---|", sep="\n")
    for name, values in columns.items():
        print(f"| {name} | {rounds.cell(values)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--first", type=int, default=1, metavar="SEED")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        main(Path(name), seeds)
