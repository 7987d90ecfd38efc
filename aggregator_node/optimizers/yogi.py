"""Yogi: Adam whose size of the gradients changes slowly, so that it does not forget at once. Pure.

    square  = gradient * gradient
    mean    = beta1 * mean + (1 - beta1) * gradient
    squares = squares - (1 - beta2) * (sign(squares - square) * square)
    weights = weights - lr * (mean / (sqrt(squares) + epsilon))

Before the first step the mean is 0 and squares is epsilon * epsilon, the least that Reddi et al. allow. There is no bias
correction.

Zaheer, Reddi, Sachan, Kale, Kumar 2018 (Adaptive Methods for Nonconvex Optimization, NeurIPS); on the pseudo-gradient FedYogi
of Reddi et al. 2021 (arXiv 2003.00295, algorithm 2), where epsilon is called tau. Reference implementation: that of
Reddi et al., https://github.com/google-research/federated, folder `optimization`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Yogi:
    """One step of Yogi for each element; see `aggregator_node/optimizers/step.py` for the methods."""

    lr: float
    beta1: float
    beta2: float
    epsilon: float

    @property
    def first(self) -> tuple[float, ...]:
        """The mean and the squares before the first step."""
        return 0.0, self.epsilon * self.epsilon

    def change(
        self, gradients: NDArray[np.float64], kept: NDArray[np.float64], number: int
    ) -> NDArray[np.float64]:
        """What is subtracted from the weights."""
        del number  # there is no bias correction
        squares = gradients * gradients
        kept[0] = self.beta1 * kept[0] + (1 - self.beta1) * gradients
        kept[1] = kept[1] - (1 - self.beta2) * (np.sign(kept[1] - squares) * squares)
        change: NDArray[np.float64] = self.lr * (kept[0] / (np.sqrt(kept[1]) + self.epsilon))
        return change
