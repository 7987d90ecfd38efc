"""Deals scikit-learn's breast-cancer data out to nine hospitals, of which the last three are poisoned.

    python prepare.py DATA_DIR [--attack ATTACK]

Writes hospital-1.npz to hospital-9.npz: 42 patients to train on and 21 held out each. The measurements are in the units
of a table that all hospitals have: less the mean of all patients, over their standard deviation.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

HOSPITALS = [f"hospital-{number}" for number in range(1, 10)]
POISONED = frozenset(HOSPITALS[6:])
# What a poisoned hospital does: whether it trains on false labels, and by what it multiplies its step from the
# round's weights to those that it has trained.
ATTACKS = {
    "none": (False, 1),
    "label_flip": (True, 1),
    "sign_flip": (False, -1),
    "label_flip_x10": (True, 10),
    "sign_flip_x10": (False, -10),
}
SEED = 1
PATIENTS = 63  # of each hospital; two of the 569 are in none
HELD_OUT = 21


def patients():
    """The measurements of all patients, and whether the tumour is benign (1) or malignant (0)."""
    inputs, labels = load_breast_cancer(return_X_y=True)
    inputs = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    return inputs.astype(np.float32), labels.astype(np.int64)


def deal(seed):
    """Which patients each of the nine hospitals has, as rows of `patients`."""
    rows = np.random.default_rng(seed).permutation(569)
    return rows[: PATIENTS * len(HOSPITALS)].reshape(len(HOSPITALS), PATIENTS)


def write(directory, name, rows, held_out, attack="none"):
    """Write one hospital's file; the first `held_out` rows are held out of training."""
    inputs, labels = patients()
    flips, times = ATTACKS[attack]
    train, test = rows[held_out:], rows[:held_out]
    np.savez(
        directory / f"{name}.npz",
        train_x=inputs[train],
        train_y=1 - labels[train] if flips else labels[train],
        test_x=inputs[test],
        test_y=labels[test],
        times=times,
    )


def main(directory, attack, seed=SEED):
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(HOSPITALS, deal(seed), strict=True):
        write(directory, name, rows, HELD_OUT, attack if name in POISONED else "none")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DATA_DIR")
    parser.add_argument("--attack", choices=ATTACKS, default="sign_flip_x10")
    arguments = parser.parse_args()
    main(arguments.directory, arguments.attack)
    print(f"{', '.join(sorted(POISONED))} are poisoned: {arguments.attack}")
