"""Says what a task's private training may tell of one record: epsilon, by the accountant of dp-accounting. Pure.

The mechanism is DP-SGD (Abadi et al. 2016, arXiv 1607.00133): a step draws each record independently with the
probability `sample_rate`, clips each drawn record's gradient, and adds Gaussian noise of `noise` times the clipping norm
to their sum. Neighbours differ in one record that is there or not. The loss of all steps together is composed as a
privacy loss distribution (PLD), rounded upwards, so that epsilon is never understated.

dp-accounting is imported when something is accounted, and not before: it takes seconds and 90 MB. Imports no torch.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cairn.errors import UsageError
from cairn.tasks.loader import is_installed

MOST_STEPS = 1 << 24  # of one loop
_PACKAGES = ("dp_accounting", "opacus")  # those of the extra
# Of the privacy loss: at a tenth of it epsilon is smaller by less than 0.001, and takes ten times as long.
_INTERVAL = 1e-3
# Renyi accounting, which is fast at any size, bounds epsilon from above; beyond this a privacy loss distribution would
# take more memory than there is, and no privacy is left to speak of.
_ROUGH_ORDERS = (2, 4, 16, 64)
_MOST_ROUGHLY = 1e4
LEAST_NOISE, MOST_NOISE = 0.1, 1e6


@dataclass(frozen=True)
class PrivateSteps:
    """So many steps of DP-SGD, at one sample rate and one noise multiplier."""

    sample_rate: float
    noise: float
    steps: int

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that no training has."""
        if not 1 / MOST_STEPS <= self.sample_rate <= 1:  # an epoch has 1 / sample_rate steps
            raise ValueError(
                f"the sample rate is {self.sample_rate}, expected one from {1 / MOST_STEPS:g} to 1"
            )
        if not LEAST_NOISE <= self.noise <= MOST_NOISE:
            raise ValueError(
                f"the noise is {self.noise}, expected a number from {LEAST_NOISE} to {MOST_NOISE:g}"
            )
        if type(self.steps) is not int or not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"the steps are {self.steps!r}, expected 1 to {MOST_STEPS}")

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "PrivateSteps":
        """Those that a ledger's entry records. Raises KeyError, TypeError or ValueError where it records none."""
        try:
            return cls(float(facts["sample_rate"]), float(facts["noise"]), facts["steps"])
        except OverflowError as error:  # of an integer
            raise ValueError(str(error)) from None


def epsilon_of(taken: Iterable[PrivateSteps], delta: float) -> float:
    """The epsilon of all these steps together, at this delta; 0 of none, and infinite where it is in the thousands.

    Raises UsageError where dp-accounting is not installed.
    """
    steps: Counter[tuple[float, float]] = Counter()
    for each in taken:
        steps[each.sample_rate, each.noise] += each.steps
    return _epsilon(frozenset(steps.items()), delta)


def check_installed() -> None:
    """Raise UsageError where what private training needs is not installed. Imports none of it."""
    missing = [name for name in _PACKAGES if not is_installed(name)]
    if missing:
        raise UsageError(
            f"private training needs {missing[0].replace('_', '-')}, which is not installed: pip install 'cairn[dp]'"
        )


@lru_cache(maxsize=64)  # an owner asks of the same steps before each round
def _epsilon(steps: frozenset[tuple[tuple[float, float], int]], delta: float) -> float:
    if not steps:
        return 0.0
    check_installed()
    from dp_accounting import (
        GaussianDpEvent,
        PoissonSampledDpEvent,
        SelfComposedDpEvent,
    )
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    rough = RdpAccountant(_ROUGH_ORDERS)
    accountant = PLDAccountant(value_discretization_interval=_INTERVAL)
    events = [
        SelfComposedDpEvent(PoissonSampledDpEvent(sample_rate, GaussianDpEvent(noise)), count)
        for (sample_rate, noise), count in sorted(steps)
    ]
    for event in events:
        rough.compose(event)
    if rough.get_epsilon(delta) > _MOST_ROUGHLY:
        return math.inf
    for event in events:
        accountant.compose(event)
    return float(accountant.get_epsilon(delta))
