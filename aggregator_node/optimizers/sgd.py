"""Stochastic gradient descent, with momentum or without. Pure.

    buffer  = momentum * buffer + gradient        0 before the first step
    weights = weights - lr * buffer

Without momentum the buffer is the gradient, and nothing is kept. On the pseudo-gradient this is FedAvgM (Hsu, Qi, Brown
2019, arXiv 1909.06335); on gradients of one batch it is FedSGD (McMahan et al. 2017, arXiv 1602.05629).

Reference implementation: `torch.optim.SGD(lr, momentum)`, whose dampening is 0 and whose momentum is not Nesterov's.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sgd:
    """One step of SGD for each element; see `aggregator_node/optimizers/step.py` for the methods."""

    lr: float
    momentum: float

    @property
    def first(self) -> tuple[float, ...]:
        """The buffer before the first step; nothing without momentum."""
        return (0.0,) if self.momentum else ()

    def change(
        self, gradients: NDArray[np.float64], kept: NDArray[np.float64], number: int
    ) -> NDArray[np.float64]:
        """What is subtracted from the weights."""
        del number  # every step is like the first
        if not self.momentum:
            return self.lr * gradients
        kept[0] = self.momentum * kept[0] + gradients
        change: NDArray[np.float64] = self.lr * kept[0]
        return change
