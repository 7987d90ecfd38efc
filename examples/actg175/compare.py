"""The federated Cox model beside that of all data in one place, averaged weights, and each hospital alone.

    python compare.py [--seeds N]

All in one process, by the aggregator's own mean and optimizer. A seed decides which patients each hospital has, and which of
them are held out. With all data in one place, lifelines fits the model, by a method of its own.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
import prepare
import torch
from lifelines import CoxPHFitter

sys.path.append(str(Path(__file__).parents[1]))  # where the modules are that several examples use
import rounds

HERE = Path(__file__).parent
GRADIENTS = rounds.Example(HERE)
MEAN = rounds.Example(HERE, "mean.toml")
COMBINED = len(prepare.COVARIATES)  # zidovudine and didanosine, beside zidovudine alone


def pooled(directory):
    """All patients to train on, and the hospital of each."""
    frames = []
    for name in prepare.HOSPITALS:
        with np.load(directory / f"{name}.npz") as file:
            covariates = pd.DataFrame(file["train_x"], columns=prepare.NAMES)
            frames.append(
                covariates.assign(
                    days=file["train_days"], event=file["train_events"], hospital=name
                )
            )
    return pd.concat(frames)


def by_lifelines(directory, strata):
    """The log hazard ratios, as the model's weights."""
    table = pooled(directory)
    if not strata:
        table = table.drop(columns="hospital")
    fitted = CoxPHFitter().fit(table, "days", "event", strata=strata)
    return fitted.params_[prepare.NAMES].to_numpy(np.float32)


def hazard_ratios(model):
    return np.exp(np.frombuffer(model, np.float32).astype(float))


def fitted(directory):
    """What each way of fitting comes to: (name, schema, weights), for each hospital where it is alone."""
    owners = GRADIENTS.owners(directory)
    schema, model = GRADIENTS.trained(owners)
    yield "central, one baseline", schema, by_lifelines(directory, None).tobytes()
    yield "central, a baseline each", schema, by_lifelines(directory, ["hospital"]).tobytes()
    yield "federated gradients", schema, model
    yield "averaged weights", *MEAN.trained(MEAN.owners(directory))
    for owner in owners:
        yield "local only", *GRADIENTS.alone(owner)


def main(directory, seeds):
    concordances, ratios, distances = {}, {}, {}
    for seed in seeds:
        prepare.main(directory, seed)
        owners = GRADIENTS.owners(directory)
        reached = {}
        for name, schema, model in fitted(directory):
            concordance = GRADIENTS.measured(owners, schema, model, "concordance")
            reached.setdefault(name, []).append((concordance, hazard_ratios(model)))
        (_, reference) = reached["central, a baseline each"][0]
        for name, fits in reached.items():
            concordances.setdefault(name, []).append(mean(value for value, _ in fits))
            ratios.setdefault(name, []).extend(all_of[COMBINED] for _, all_of in fits)
            distances.setdefault(name, []).extend(
                np.abs(all_of / reference - 1).max() for _, all_of in fits
            )
    print("| | concordance | hazard ratio | farthest from central |", "|---" * 4 + "|", sep="\n")
    for name, values in concordances.items():
        cells = rounds.cell(values), rounds.cell(ratios[name]), f"{max(distances[name]):.1%}"
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        main(Path(name), range(1, arguments.seeds + 1))
