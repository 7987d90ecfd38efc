"""Adam: momentum, divided by the size that gradients had of late. Pure.

In step number t, which begins with 1:

    mean    = beta1 * mean + (1 - beta1) * gradient                   0 before the first step
    squares = beta2 * squares + (1 - beta2) * (gradient * gradient)   0 before the first step
    weights = weights - lr / (1 - beta1**t) * (mean / (sqrt(squares) / sqrt(1 - beta2**t) + epsilon))

Kingma, Ba 2015 (arXiv 1412.6980). On the pseudo-gradient this is FedAdam of Reddi et al. 2021 (arXiv 2003.00295) with the bias
correction of Kingma and Ba, which Reddi et al. leave out.

Reference implementation: `torch.optim.Adam(lr, (beta1, beta2), eps=epsilon)`. The powers are products, by repeated
squaring: the C library's `pow` need not give the same bits on every machine.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Adam:
    """One step of Adam for each element; see `aggregator_node/optimizers/step.py` for the methods."""

    lr: float
    beta1: float
    beta2: float
    epsilon: float

    first: ClassVar[tuple[float, ...]] = (0.0, 0.0)

    def change(
        self, gradients: NDArray[np.float64], kept: NDArray[np.float64], number: int
    ) -> NDArray[np.float64]:
        """What is subtracted from the weights."""
        kept[0] = self.beta1 * kept[0] + (1 - self.beta1) * gradients
        kept[1] = self.beta2 * kept[1] + (1 - self.beta2) * (gradients * gradients)
        rate = self.lr / (1 - _power(self.beta1, number))
        correction = math.sqrt(1 - _power(self.beta2, number))
        change: NDArray[np.float64] = rate * (
            kept[0] / (np.sqrt(kept[1]) / correction + self.epsilon)
        )
        return change


def _power(base: float, exponent: int) -> float:
    power = 1.0
    while exponent:
        if exponent % 2:
            power = power * base
        base = base * base
        exponent //= 2
    return power
