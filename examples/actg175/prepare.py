"""Deals the patients of the trial ACTG 175 out to five hospitals.

    python prepare.py DATA_DIR

Writes hospital-1.npz to hospital-5.npz. Each patient is in one hospital, and a quarter of every hospital's are held
out of training. Which patients a hospital sees, by how long they had been treated before, is drawn from Dirichlet(0.5).

The table is the one in the package lifelines (Hammer et al. 1996, New England Journal of Medicine 335:1081-1090).
"""

import argparse
import csv
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # where the modules are that several examples use
import dirichlet

HOSPITALS = [f"hospital-{number}" for number in range(1, 6)]
SEED = 1
FEWEST = 100  # patients of a hospital
# What is known of a patient when the trial begins, and the unit that it is measured in here.
COVARIATES = {
    "age": 10,  # years
    "wtkg": 10,  # kg
    "hemo": 1,
    "homo": 1,
    "drugs": 1,
    "karnof": 10,  # a score of 0 to 100
    "preanti": 365,  # days of antiretroviral therapy before the trial
    "race": 1,
    "gender": 1,
    "symptom": 1,
    "cd40": 100,  # CD4 cells per cubic millimetre
    "cd80": 500,  # CD8 cells
}
ARMS = ["zidovudine and didanosine", "zidovudine and zalcitabine", "didanosine"]  # 0: zidovudine
NAMES = [*COVARIATES, *ARMS]


def patients():
    """Of all patients: the covariates in their units, the days that they were observed, whether these ended with an event
    (half of the CD4 cells lost, AIDS, or death), and how long they had been treated before: 1 not at all, 3 over a year.
    """
    with (files("lifelines.datasets") / "ACTG175.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def column(name):
        return np.array([float(row[name]) for row in rows])

    inputs = [column(name) / unit for name, unit in COVARIATES.items()]
    inputs += [column("arms") == arm for arm in (1, 2, 3)]
    return (
        np.stack(inputs, axis=1).astype(np.float32),
        column("days").astype(np.float32),
        column("cens") == 1,
        column("strat"),
    )


def deal(seed):
    """Which patients each hospital has, as rows of `patients`."""
    return dirichlet.deal(patients()[-1], len(HOSPITALS), FEWEST, seed)


def write(path, train, test):
    """Write one hospital's file from rows of `patients`."""
    inputs, days, events, _ = patients()
    np.savez(
        path,
        train_x=inputs[train],
        train_days=days[train],
        train_events=events[train],
        test_x=inputs[test],
        test_days=days[test],
        test_events=events[test],
    )


def main(directory, seed=SEED):
    directory.mkdir(parents=True, exist_ok=True)
    _, _, events, before = patients()
    for name, rows in zip(HOSPITALS, deal(seed), strict=True):
        held_out = len(rows) // 4
        train, test = rows[held_out:], rows[:held_out]
        write(directory / f"{name}.npz", train, test)
        print(
            f"{name}: {len(train)} patients to train on, {len(test)} held out,"
            f" {np.mean(before[train] == 1):.0%} not treated before, an event in {events[train].mean():.0%}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DATA_DIR")
    arguments = parser.parse_args()
    if find_spec("lifelines") is None:
        sys.exit("the trial's table comes with lifelines: pip install 'cairn[trial]'")
    main(arguments.directory)
