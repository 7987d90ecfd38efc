"""What each rule makes of each attack: the accuracy on everybody's held-out patients.

    python compare.py [--seeds N] [--rule RULE ...] [--attack ATTACK ...]

All in one process, with the rules' own code. A seed decides where each patient is, and the initial model.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean

import numpy as np
import prepare
import rounds
import torch

NUMBERS = {
    "mean": {},
    "norm_bounded_mean": {"norm": 0.3},
    "trimmed_mean": {"trim": 0.34},
    "bucketed_median": {"bucket": 2},
    "multi_krum": {"byzantine": 3, "select": 5},
    "geometric_median": {},
    "centred_clipping": {"norm": 0.1, "iterations": 10},
}


def dealt(directory, seed, attack="none"):
    """The hospitals, with what this seed deals to them."""
    home = directory / f"{attack}-{seed}"
    prepare.main(home, attack, seed)
    return rounds.owners(home, prepare.HOSPITALS)


def federated(directory, seed, attack, rule):
    runners = dealt(directory, seed, attack)
    try:
        model = rounds.trained(runners, rounds.aggregation(rule, NUMBERS[rule]), seed)
    except rounds.Diverged:
        return float("nan")
    return rounds.accuracy(runners, *model)


def central(directory, seed):
    """All hospitals' data in one place, as that of one hospital."""
    runners = dealt(directory, seed)
    rows = prepare.deal(seed)
    held_out, train = rows[:, : prepare.HELD_OUT].ravel(), rows[:, prepare.HELD_OUT :].ravel()
    prepare.write(directory, "everyone", np.concatenate([held_out, train]), len(held_out))
    return rounds.accuracy(runners, *alone(rounds.owners(directory, ["everyone"])[0], seed))


def local(directory, seed):
    """Each hospital by itself, on average."""
    runners = dealt(directory, seed)
    return mean(rounds.accuracy(runners, *alone(runner, seed)) for runner in runners)


def alone(runner, seed):
    """The rounds of one owner: the mean of one update is that update."""
    return rounds.trained([runner], rounds.aggregation(), seed)


def cell(values):
    if any(np.isnan(values)):
        return "diverges"
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main(directory, seeds, rules, attacks):
    print(f"| | {' | '.join(attacks)} |", "|---" * (1 + len(attacks)) + "|", sep="\n")
    for rule in rules:
        columns = [
            [federated(directory, seed, attack, rule) for seed in seeds] for attack in attacks
        ]
        print(f"| {rule} | {' | '.join(map(cell, columns))} |", flush=True)
    print(f"\ncentral: {cell([central(directory, seed) for seed in seeds])}")
    print(f"local only: {cell([local(directory, seed) for seed in seeds])}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--rule", nargs="+", choices=NUMBERS, default=list(NUMBERS))
    parser.add_argument("--attack", nargs="+", choices=prepare.ATTACKS, default=[*prepare.ATTACKS])
    arguments = parser.parse_args()
    torch.set_num_threads(
        1
    )  # the matrices are so small that threads would only wait for one another
    with tempfile.TemporaryDirectory() as directory:
        main(Path(directory), range(1, arguments.seeds + 1), arguments.rule, arguments.attack)
