"""What each rule makes of each attack: the accuracy on everybody's held-out patients.

    python compare.py [--seeds N] [--rule RULE ...] [--attack ATTACK ...]

All in one process, with the rules' own code. A seed decides where each patient is, and the initial model.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import mean

import numpy as np
import prepare
import torch

sys.path.append(str(Path(__file__).parents[1]))  # where the modules are that several examples use
import rounds

EXAMPLE = rounds.Example(Path(__file__).parent)
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
    return EXAMPLE.owners(home)


def federated(directory, seed, attack, rule):
    runners = dealt(directory, seed, attack)
    try:
        model = EXAMPLE.trained(runners, rounds.aggregation(rule, NUMBERS[rule]), seed)
    except rounds.Diverged:
        return float("nan")
    return EXAMPLE.measured(runners, *model)


def central(directory, seed):
    """All hospitals' data in one place, as that of one hospital."""
    runners = dealt(directory, seed)
    rows = prepare.deal(seed)
    held_out, train = rows[:, : prepare.HELD_OUT].ravel(), rows[:, prepare.HELD_OUT :].ravel()
    prepare.write(directory, "everyone", np.concatenate([held_out, train]), len(held_out))
    return EXAMPLE.measured(runners, *EXAMPLE.alone(*EXAMPLE.owners(directory, ["everyone"]), seed))


def local(directory, seed):
    """Each hospital by itself, on average."""
    runners = dealt(directory, seed)
    return mean(EXAMPLE.measured(runners, *EXAMPLE.alone(runner, seed)) for runner in runners)


def main(directory, seeds, rules, attacks):
    print(f"| | {' | '.join(attacks)} |", "|---" * (1 + len(attacks)) + "|", sep="\n")
    for rule in rules:
        columns = [
            [federated(directory, seed, attack, rule) for seed in seeds] for attack in attacks
        ]
        print(f"| {rule} | {' | '.join(map(rounds.cell, columns))} |", flush=True)
    print(f"\ncentral: {rounds.cell([central(directory, seed) for seed in seeds])}")
    print(f"local only: {rounds.cell([local(directory, seed) for seed in seeds])}")


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
