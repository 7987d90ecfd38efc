"""Deals scikit-learn's breast-cancer data out to five hospitals, as unlike as hospitals are.

    python prepare.py DATA_DIR

Writes hospital-1.npz to hospital-5.npz. Each patient is in one hospital, and a quarter of every
hospital's patients are held out of training.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

SEED = 7
# How many benign and how many malignant tumours each hospital has seen: 165, 120, 99, 88 and 97
# patients, of whom 85, 75, 63, 45 and 26 per cent had a benign one.
BENIGN = [140, 90, 62, 40, 25]
MALIGNANT = [25, 30, 37, 48, 72]


def deal(labels):
    """Split the rows into five shares, each (train rows, held-out rows)."""
    random = np.random.default_rng(SEED)
    benign = np.split(random.permutation(np.flatnonzero(labels == 1)), np.cumsum(BENIGN)[:-1])
    malignant = np.split(random.permutation(np.flatnonzero(labels == 0)), np.cumsum(MALIGNANT)[:-1])
    for rows in map(np.concatenate, zip(benign, malignant, strict=True)):
        mixed = random.permutation(rows)
        held_out = len(mixed) // 4
        yield mixed[held_out:], mixed[:held_out]


def main(directory):
    directory.mkdir(parents=True, exist_ok=True)
    inputs, labels = load_breast_cancer(return_X_y=True)
    inputs, labels = inputs.astype(np.float32), labels.astype(np.int64)
    for number, (train, test) in enumerate(deal(labels), 1):
        np.savez(
            directory / f"hospital-{number}.npz",
            train_x=inputs[train],
            train_y=labels[train],
            test_x=inputs[test],
            test_y=labels[test],
        )
        print(
            f"hospital-{number}: {len(train)} patients to train on, {len(test)} held out,"
            f" {labels[train].mean():.0%} benign"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DATA_DIR")
    main(parser.parse_args().directory)
