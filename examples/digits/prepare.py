"""Deals scikit-learn's digits out to five offices, each of which has a scanner of its own.

    python prepare.py DATA_DIR [--scanners own|same]

Writes office-1.npz to office-5.npz. Each digit is in one office, and a quarter of every office's are held out of
training. Which digits an office sees is drawn from Dirichlet(0.5).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

sys.path.append(str(Path(__file__).parents[1]))  # where the modules are that several examples use
import dirichlet

SEED = 1
FEWEST = 60  # digits of an office
# What a scanner makes of a pixel between 0 (paper) and 1 (ink).
SCANNERS = {
    "office-1": lambda ink: ink,
    "office-2": lambda ink: 1 - ink,  # white on black
    "office-3": lambda ink: 0.25 * ink,  # faint
    "office-4": lambda ink: 0.6 + 0.4 * ink,  # on grey paper
    "office-5": lambda ink: ink**3,  # loses fine strokes
}


def deal(seed):
    """The digits of each office, as rows of scikit-learn's."""
    labels = load_digits().target
    return dict(zip(SCANNERS, dirichlet.deal(labels, len(SCANNERS), FEWEST, seed), strict=True))


def main(directory, scanners="own", seed=SEED):
    directory.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8) / 16
    for name, rows in deal(seed).items():
        seen = SCANNERS[name if scanners == "own" else "office-1"](images[rows])
        held_out = len(rows) // 4
        np.savez(
            directory / f"{name}.npz",
            train_x=seen[held_out:].astype(np.float32),
            train_y=labels[rows[held_out:]],
            test_x=seen[:held_out].astype(np.float32),
            test_y=labels[rows[:held_out]],
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DATA_DIR")
    parser.add_argument("--scanners", choices=["own", "same"], default="own")
    arguments = parser.parse_args()
    main(arguments.directory, arguments.scanners)
