"""Deals scikit-learn's breast-cancer data out to three clinics, of 190, 190 and 189 patients.

    python prepare.py DATA_DIR

Writes clinic-1.npz to clinic-3.npz. Each patient is in one clinic, and a quarter of every clinic's patients are
held out of training.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

SEED = 7
CLINICS = 3


def main(directory):
    directory.mkdir(parents=True, exist_ok=True)
    inputs, labels = load_breast_cancer(return_X_y=True)
    inputs, labels = inputs.astype(np.float32), labels.astype(np.int64)
    rows = np.random.default_rng(SEED).permutation(len(labels))
    for number, share in enumerate(np.array_split(rows, CLINICS), 1):
        test, train = np.split(share, [len(share) // 4])
        np.savez(
            directory / f"clinic-{number}.npz",
            train_x=inputs[train],
            train_y=labels[train],
            test_x=inputs[test],
            test_y=labels[test],
        )
        print(f"clinic-{number}: {len(train)} patients to train on, {len(test)} held out")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DATA_DIR")
    main(parser.parse_args().directory)
