"""What the hospitals reach without a federation: all data in one place, and each one alone.

    python compare.py DATA_DIR

Plain PyTorch with the same model, optimiser and number of passes over the data as the job. Each model
is measured on the held-out patients of all five hospitals.
"""

import argparse
from pathlib import Path

import numpy as np
import task
import torch

import cairn

SEED = 1
ROUNDS = 20
SETTINGS = {"lr": 0.1, "epochs": 2}
HOSPITALS = [f"hospital-{number}" for number in range(1, 6)]


def trained(name, data):
    torch.manual_seed(SEED)
    model = task.model()
    for number in range(1, ROUNDS + 1):
        task.train(model.train(), data, cairn.Round(name, number, SETTINGS))
    return model.eval()


def pooled(parts):
    train = [torch.cat([part.train[which] for part in parts]) for which in (0, 1)]
    test = [torch.cat([part.test[which] for part in parts]) for which in (0, 1)]
    return cairn.Data(
        train=(*train, SEED), examples=len(train[1]), test=test, test_examples=len(test[1])
    )


def accuracy(model, data):
    with torch.no_grad():
        return task.evaluate(model, data, cairn.Round("compare", ROUNDS, SETTINGS))["accuracy"]


def main(directory):
    parts = [task.data(cairn.Site(name, directory / f"{name}.npz")) for name in HOSPITALS]
    everyone = pooled(parts)
    print(f"central:    {accuracy(trained('central', everyone), everyone):.3f}")
    alone = []
    for name, part in zip(HOSPITALS, parts, strict=True):
        model = trained(name, part)
        alone.append(accuracy(model, everyone))
        print(f"{name}: {alone[-1]:.3f} (on its own held-out patients {accuracy(model, part):.3f})")
    print(f"local only: {np.mean(alone):.3f} on average")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DATA_DIR")
    main(parser.parse_args().directory)
