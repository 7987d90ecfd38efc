"""Deals scikit-learn's digits out to four offices, each image turned on its side.

    python prepare.py DATA_DIR

Writes office-1.npz to office-4.npz: each digit is in one office, a quarter of every office's are held
out of training, and the 600 that the frozen network has seen are in none.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

PUBLIC = 600  # as in pretrain.py
SEED = 7
OFFICES = 4


def main(directory):
    directory.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits(return_X_y=True)
    turned = np.rot90(images[PUBLIC:].reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64)
    inputs, labels = (turned / 16).astype(np.float32), labels[PUBLIC:].astype(np.int64)
    shares = np.array_split(np.random.default_rng(SEED).permutation(len(labels)), OFFICES)
    for number, rows in enumerate(shares, 1):
        held_out = len(rows) // 4
        train, test = rows[held_out:], rows[:held_out]
        np.savez(
            directory / f"office-{number}.npz",
            train_x=inputs[train],
            train_y=labels[train],
            test_x=inputs[test],
            test_y=labels[test],
        )
        print(f"office-{number}: {len(train)} digits to train on, {len(test)} held out")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DATA_DIR")
    main(parser.parse_args().directory)
