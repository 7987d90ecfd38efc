"""Adagrad: an element that has moved much moves less. Pure.

    squares = squares + gradient * gradient       0 before the first step
    weights = weights - lr * gradient / (sqrt(squares) + epsilon)

Duchi, Hazan, Singer 2011 (JMLR 12); on the pseudo-gradient FedAdagrad of Reddi et al. 2021 (arXiv 2003.00295, algorithm 2 with
beta1 = 0), where epsilon is called tau.

Reference implementation: `torch.optim.Adagrad(lr, eps=epsilon)`, whose sum begins with 0 and whose lr does not decay.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Adagrad:
    """One step of Adagrad for each element; see `aggregator_node/optimizers/step.py` for the methods."""

    lr: float
    epsilon: float

    first: ClassVar[tuple[float, ...]] = (0.0,)

    def change(
        self, gradients: NDArray[np.float64], kept: NDArray[np.float64], number: int
    ) -> NDArray[np.float64]:
        """What is subtracted from the weights."""
        del number  # the sum says all
        kept[0] = kept[0] + gradients * gradients
        change: NDArray[np.float64] = self.lr * (gradients / (np.sqrt(kept[0]) + self.epsilon))
        return change
