"""Differential privacy of noisy releases: what they tell of one owner, and how many a budget allows. Pure.

What is claimed, and why. One release of the private mean adds independent discrete Gaussian noise of parameter sigma
to every coordinate of a sum of integer vectors. Replacing one owner's vector by zeros moves that sum by at most sigma / noise
in L2 norm, so the release is rho-zCDP (concentrated differential privacy) with

    rho = 1 / (2 noise^2)                      Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), Theorem 14

in any number of coordinates. zCDP composes by adding: owners who are counted in k releases, each of which may depend on
all earlier ones, have spent k rho (Bun, Steinke 2016, arXiv 1605.02065, Lemma 2.3). That is (epsilon, delta)-DP with

    epsilon = min over alpha > 1 of  alpha rho + log(1 - 1/alpha) - log(alpha delta) / (alpha - 1)
                                               Canonne, Kamath, Steinke 2020, Proposition 12

Every alpha gives a valid bound, so a search that misses the minimum can only overstate epsilon. No amplification by
sampling is claimed: cohorts are not drawn by chance.

A privacy loss distribution (PLD) gives 5 to 10 % less for the same noise. It is exact for continuous Gaussian noise in one
dimension; that it bounds discrete noise in many dimensions is not proven in the literature, so it is not what is
stated. `docs/security/privacy.md` has both figures side by side.
"""

import math
from dataclasses import dataclass

from cairn.protocol.aggregation import Aggregation

AGREEMENT = 1e-9  # relative; machines differ in the last digits of a logarithm
_SEARCHED = (math.log(1e-6), math.log(1e9))  # log(alpha - 1), for every noise and delta of NUMBERS
_STEPS = 100
_GOLDEN = (math.sqrt(5) - 1) / 2


def rho_of(noise: float) -> float:
    """The zCDP of one release with noise of so many times the norm."""
    return 0.5 / noise**2


def epsilon_of(rho: float, delta: float) -> float:
    """The smallest epsilon that is proven, at this delta, for what is rho-zCDP. 0 or above; grows with rho."""
    if rho == 0:
        return 0.0
    low, high = _SEARCHED
    for _ in range(_STEPS):  # golden section: one minimum
        width = _GOLDEN * (high - low)
        if _bound(high - width, rho, delta) < _bound(low + width, rho, delta):
            high = low + width
        else:
            low = high - width
    return max(0.0, _bound((low + high) / 2, rho, delta))


def _bound(log_order: float, rho: float, delta: float) -> float:
    """Proposition 12 at alpha = 1 + exp(log_order)."""
    above_one = math.exp(log_order)
    alpha = 1 + above_one
    return alpha * rho - math.log1p(1 / above_one) - math.log(alpha * delta) / above_one


@dataclass(frozen=True)
class PrivacyBudget:
    """What a job may tell of each owner: `epsilon` at `delta`, by releases whose noise is `noise` times the norm."""

    noise: float
    epsilon: float
    delta: float

    @classmethod
    def of(cls, aggregation: Aggregation) -> "PrivacyBudget | None":
        """The budget of a job with such an aggregation; None where its rule adds no noise."""
        if not aggregation.is_private:
            return None
        numbers = aggregation.rule_numbers
        return cls(numbers["noise"], numbers["epsilon"], numbers["delta"])

    def spent_by(self, releases: int) -> float:
        """The epsilon that so many releases have told of an owner who was counted in all of them."""
        return epsilon_of(releases * rho_of(self.noise), self.delta)

    def allows(self, releases: int) -> bool:
        """Whether an owner may be counted in so many releases."""
        return self.spent_by(releases) <= self.epsilon

    def most_releases(self, wanted: int) -> int:
        """In how many of the `wanted` releases an owner may be counted."""
        fits, too_many = 0, wanted + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            fits, too_many = (middle, too_many) if self.allows(middle) else (fits, middle)
        return fits


def agree(stated: float, computed: float) -> bool:
    """Whether two parties' figures are the same, but for the last digits."""
    return math.isclose(stated, computed, rel_tol=AGREEMENT)
