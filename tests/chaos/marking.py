"""What is trained where faults are met: a model whose average tells who was counted in each round.

Every owner adds 1 at its own column of the row of the round's number, so that the average tells who was
counted in each round, and how often. Beside that it halves the weights and adds its own value, and sends a
secret that nobody but itself may ever have on a disk. It keeps, for itself, how often it was trained. Where a job
evaluates, the value of a round's release is its `score`.
"""

from dataclasses import dataclass

OWNERS = {"alice": 1.0, "bob": -0.3, "carol": 0.7}
COLUMNS = {name: column for column, name in enumerate(sorted(OWNERS))}
BEST_ROUND = 2


def score(number: int) -> float:
    """What every owner finds of a round's release: the more, the nearer it is to the best."""
    return float(-abs(number - BEST_ROUND))


@dataclass(frozen=True)
class Table:
    """The model's shape: a row for each number of a round, and a secret of so many floats of each owner."""

    rows: int
    secret_floats: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            "counted": (self.rows, len(COLUMNS)),
            "weight": (4,),
            "secret": (self.secret_floats,),
        }

    def task(self) -> str:
        """The code of the owners' task."""
        shapes = self.shapes() | {"job": (1,)}
        return _TASK.format(columns=COLUMNS, shapes=shapes, best_round=BEST_ROUND)


# Where a file `pace` lies beside the data, a training takes as many seconds as it says; where `hungry`
# does, it takes as many megabytes.
_TASK = """
import time

import numpy as np
import torch
from torch import nn

import cairn

COLUMNS = {columns}


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        for name, shape in {shapes}.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))
        self.register_buffer("trained", torch.zeros(1))


def model():
    return Table()


def data(site):
    return cairn.Data(train=site.data, examples=1, test_examples=1)


def asked(data, name):
    file = data.train / name
    return float(file.read_text()) if file.exists() else 0.0


def train(model, data, round):
    if (data.train / "mode").read_text() == "raise":
        raise RuntimeError("the data cannot be read")
    hunger = b"x" * int(asked(data, "hungry") * 2**20)
    time.sleep(asked(data, "pace"))
    model.trained += 1
    with torch.no_grad():
        model.counted[round.number - 1, COLUMNS[data.train.name]] += 1
        model.weight.mul_(0.5).add_(float((data.train / "value").read_text()))
        model.secret.copy_(torch.from_numpy(np.fromfile(data.train / "secret", "<f4")))


def evaluate(model, data, round):
    return {{"value": -abs(round.number - {best_round})}}


task = cairn.Task(model=model, data=data, train=train, evaluate=evaluate, keeps=("trained",))
"""
