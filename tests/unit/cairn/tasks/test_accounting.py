"""Epsilon of private training, against the accountants of Opacus and of dp-accounting, and closed forms."""

import math

import dp_accounting
import pytest
from dp_accounting import rdp
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy import optimize, stats  # type: ignore[import-untyped]  # it has no types

from cairn.errors import UsageError
from cairn.tasks import accounting
from cairn.tasks.accounting import PrivateSteps, check_installed, epsilon_of

DELTA = 1e-5
CASES = [
    [PrivateSteps(0.1, 1.0, 20)],
    [PrivateSteps(0.1, 1.0, 15), PrivateSteps(0.1, 1.0, 5)],
    [PrivateSteps(0.02, 0.8, 300), PrivateSteps(0.1, 1.5, 40)],
]  # of every record Opacus' accountant divides by zero


@pytest.mark.parametrize("case", CASES, ids=["once", "in-two-rounds", "two-rates"])
def test_epsilon_agrees_with_opacus_prv_accountant_and_is_below_renyi_accounting(
    case: list[PrivateSteps],
) -> None:
    prv, renyi = PRVAccountant(), RDPAccountant()
    history = [(each.noise, each.sample_rate, each.steps) for each in case]
    prv.history, renyi.history = list(history), list(history)
    google = rdp.RdpAccountant(orders=range(2, 128))
    for each in case:
        step = dp_accounting.PoissonSampledDpEvent(
            each.sample_rate, dp_accounting.GaussianDpEvent(each.noise)
        )
        google.compose(dp_accounting.SelfComposedDpEvent(step, each.steps))
    epsilon = epsilon_of(case, DELTA)
    assert epsilon == pytest.approx(prv.get_epsilon(DELTA), abs=0.02)
    assert epsilon < renyi.get_epsilon(DELTA)
    assert epsilon < google.get_epsilon(DELTA)


@pytest.mark.parametrize(
    ("noise", "steps", "golden"), [(2.0, 10, 7.5), (5.0, 50, 6.6), (10.0, 100, 4.4)]
)
def test_where_every_record_is_drawn_epsilon_is_that_of_the_gaussian_mechanism(
    noise: float, steps: int, golden: float
) -> None:
    """Balle and Wang 2018, arXiv 1805.06083, theorem 8, of which `steps` are one with noise / sqrt(steps)."""
    sigma = noise / math.sqrt(steps)

    def excess(epsilon: float) -> float:
        first = stats.norm.cdf(0.5 / sigma - epsilon * sigma)
        second = stats.norm.cdf(-0.5 / sigma - epsilon * sigma)
        return float(first - math.exp(epsilon) * second - DELTA)

    exact = optimize.brentq(excess, 0.01, 50)
    epsilon = epsilon_of([PrivateSteps(1.0, noise, steps)], DELTA)
    assert exact <= epsilon < exact + 0.01  # never less than the truth
    assert epsilon == pytest.approx(golden, abs=0.06)


def test_steps_beyond_any_privacy_are_infinite_and_take_no_memory() -> None:
    assert epsilon_of([PrivateSteps(1.0, 0.1, 1 << 24)], DELTA) == math.inf
    assert epsilon_of([PrivateSteps(0.5, 0.5, 1 << 24)] * 1000, DELTA) == math.inf


def test_nothing_trained_costs_nothing_and_more_steps_cost_more() -> None:
    assert epsilon_of([], DELTA) == 0
    one, two = (epsilon_of([PrivateSteps(0.25, 1.0, 4)] * n, DELTA) for n in (1, 2))
    assert 0 < one < two < 2 * one


@pytest.mark.parametrize(
    ("rate", "noise", "steps"),
    [
        *((rate, 1.0, 1) for rate in (0.0, -0.1, 1.1, math.nan)),
        *((0.1, noise, 1) for noise in (0.0, 0.01, -1.0, math.inf, math.nan)),
        *((0.1, 1.0, steps) for steps in (0, -1, 1 << 25, 1.0, True)),
    ],
)
def test_numbers_that_no_training_has_are_refused(rate: float, noise: float, steps: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        PrivateSteps(rate, noise, steps)


def test_without_the_extra_the_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accounting, "is_installed", lambda name: name != "opacus")
    with pytest.raises(UsageError, match=r"needs opacus, .*pip install 'cairn\[dp\]'"):
        check_installed()
    monkeypatch.setattr(accounting, "is_installed", lambda name: name != "dp_accounting")
    with pytest.raises(UsageError, match="needs dp-accounting"):
        epsilon_of([PrivateSteps(0.123, 1.0, 1)], DELTA)
