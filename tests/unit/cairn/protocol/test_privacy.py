"""What noisy releases tell of one owner, beside the figures of other accountants and beside the exact mathematics."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats  # type: ignore[import-untyped]  # SciPy has no stubs

from cairn.protocol.aggregation import NUMBERS, Aggregation
from cairn.protocol.privacy import PrivacyBudget, agree, epsilon_of, rho_of
from cairn.v1 import round_pb2 as pb

# noise, releases, delta: epsilon by the RDP accountants of dp-accounting 0.6.0 and of Opacus 1.6.0 (sample rate 1), each at
# its own orders, and by dp-accounting's PLD accountant for continuous Gaussian noise.
GOLDEN = {
    (1, 1, 1e-5): (4.7285, 4.7285, 4.3772),
    (1, 10, 1e-5): (19.0536, 19.0536, 17.8566),
    (1, 50, 1e-5): (57.3017, 57.3017, 54.3766),
    (1, 100, 1e-5): (96.1163, 96.1163, 91.8173),
    (2, 1, 1e-5): (2.1657, 2.1657, 1.9931),
    (2, 10, 1e-5): (8.0794, 8.0794, 7.5113),
    (2, 50, 1e-5): (22.0199, 22.0199, 20.6755),
    (2, 100, 1e-5): (35.0818, 35.0818, 33.1037),
    (5, 10, 1e-5): (2.8137, 2.8137, 2.5944),
    (5, 50, 1e-5): (7.0774, 7.0774, 6.5730),
    (5, 100, 1e-5): (10.7255, 10.7255, 9.9973),
    (10, 10, 1e-5): (1.3085, 1.3085, 1.1994),
    (10, 50, 1e-5): (3.1890, 3.1890, 2.9432),
    (10, 100, 1e-5): (4.7285, 4.7285, 4.3772),
    (50, 10, 1e-5): (0.2288, 0.2288, 0.2068),
    (2, 20, 1e-6): (13.3764, 13.3764, 12.5952),
    (4, 37, 1e-7): (9.1270, 9.1270, 8.6298),
    (0.7, 3, 1e-4): (12.6329, 12.6329, 11.6568),
}
_OF_PRIVATE_MEAN = NUMBERS[pb.RULE_PRIVATE_MEAN]
noises = st.floats(_OF_PRIVATE_MEAN["noise"].low, _OF_PRIVATE_MEAN["noise"].high)
deltas = st.floats(_OF_PRIVATE_MEAN["delta"].low, _OF_PRIVATE_MEAN["delta"].high)
releases = st.integers(1, 1_000_000)


@pytest.mark.parametrize(("noise", "count", "delta"), GOLDEN)
def test_epsilon_is_that_of_two_other_accountants(noise: float, count: int, delta: float) -> None:
    dp_accounting, opacus, _ = GOLDEN[noise, count, delta]
    epsilon = epsilon_of(count * rho_of(noise), delta)
    assert epsilon == pytest.approx(dp_accounting, abs=0.1)
    assert epsilon == pytest.approx(opacus, abs=0.1)


@pytest.mark.parametrize(("noise", "count", "delta"), GOLDEN)
def test_epsilon_is_above_the_loss_distributions_and_by_less_than_an_eighth(
    noise: float, count: int, delta: float
) -> None:
    exact = GOLDEN[noise, count, delta][2]
    assert exact < epsilon_of(count * rho_of(noise), delta) < 1.125 * exact


@settings(max_examples=30)
@given(noises, releases, deltas)
def test_epsilon_is_the_least_of_the_propositions_bounds(
    noise: float, count: int, delta: float
) -> None:
    """By SciPy's own search, from each of many orders."""
    rho = count * rho_of(noise)

    def bound(log_order: float) -> float:
        alpha = 1 + math.exp(log_order)
        return (
            alpha * rho + math.log1p(-1 / alpha) - (math.log(delta) + math.log(alpha)) / (alpha - 1)
        )

    starts = [-12.0 + step for step in range(30)]
    found = (
        optimize.minimize_scalar(
            bound, bounds=(start, start + 1), method="bounded", options={"xatol": 1e-12}
        )
        for start in starts
    )
    least = max(0.0, min(float(each.fun) for each in found))
    assert epsilon_of(rho, delta) == pytest.approx(least, rel=1e-6, abs=1e-9)


@given(st.floats(0.3, 50), st.integers(1, 500), st.floats(1e-10, 1e-3))
def test_no_continuous_gaussian_noise_tells_more_than_epsilon(
    noise: float, count: int, delta: float
) -> None:
    """By its exact delta (Balle, Wang 2018, arXiv 1805.06530, Theorem 8): a lower bound for what any accountant may say."""
    epsilon, shift = epsilon_of(count * rho_of(noise), delta), math.sqrt(count) / noise
    exact = stats.norm.cdf(shift / 2 - epsilon / shift) - math.exp(
        epsilon + stats.norm.logcdf(-shift / 2 - epsilon / shift)
    )
    assert exact <= delta


def test_no_discrete_gaussian_noise_in_few_dimensions_tells_more_than_epsilon() -> None:
    """By summing up the exact privacy loss, where the grid is coarse and its form shows the most."""
    for sigma, shifts in ((1.0, (1,)), (2.0, (1,)), (1.5, (1, 1)), (3.0, (2, 1)), (2.0, (1, 1, 1))):
        noise = sigma / math.hypot(*shifts)
        epsilon = epsilon_of(rho_of(noise), 1e-5)
        assert _exact_delta(sigma, shifts, epsilon) <= 1e-5
        assert _exact_delta(sigma, shifts, epsilon / 2) > 1e-5  # it is not far off either


def _exact_delta(sigma: float, shifts: tuple[int, ...], epsilon: float) -> float:
    """The chance of more than epsilon, less exp(epsilon) times what it is without the shifted vector."""
    reach = range(-int(12 * sigma) - 3, int(12 * sigma) + 4)
    weight = {x: math.exp(-(x**2) / (2 * sigma**2)) for x in reach}
    total = math.fsum(weight.values())
    joint: dict[int, float] = {
        0: 1.0
    }  # the scalar product of noise and shifts, which the loss depends on
    for shift in shifts:
        wider: dict[int, float] = {}
        for product, chance in joint.items():
            for x in reach:
                key = product + shift * x
                wider[key] = wider.get(key, 0.0) + chance * weight[x] / total
        joint = wider
    half = sum(shift**2 for shift in shifts) / 2
    losses = ((product + half) / sigma**2 for product in joint)
    return math.fsum(
        max(0.0, chance * -math.expm1(epsilon - loss))
        for loss, chance in zip(losses, joint.values(), strict=True)
    )


@given(noises, st.integers(1, 1_000_000), deltas)
def test_another_release_never_tells_less(noise: float, count: int, delta: float) -> None:
    budget = PrivacyBudget(noise, 1.0, delta)
    one, next_ = budget.spent_by(count), budget.spent_by(count + 1)
    assert next_ >= one or agree(one, next_)


@given(noises, st.floats(1e-3, 1e3), deltas, st.integers(1, 1000))
def test_a_budget_allows_its_most_releases_and_not_one_more(
    noise: float, epsilon: float, delta: float, wanted: int
) -> None:
    budget = PrivacyBudget(noise, epsilon, delta)
    most = budget.most_releases(wanted)
    assert 0 <= most <= wanted
    assert budget.allows(most)
    assert most == wanted or not budget.allows(most + 1)


def test_a_budget_is_that_of_the_private_mean_alone() -> None:
    numbers = {"norm": 1.0, "noise": 2.0, "epsilon": 8.0, "delta": 1e-5}
    private = Aggregation(rule=pb.RULE_PRIVATE_MEAN, rule_numbers=numbers)
    assert PrivacyBudget.of(private) == PrivacyBudget(noise=2.0, epsilon=8.0, delta=1e-5)
    assert PrivacyBudget.of(Aggregation()) is None
    assert PrivacyBudget(2.0, 8.0, 1e-5).most_releases(100) == 9


PAGE = (Path(__file__).parents[4] / "docs/security/privacy.md").read_text(encoding="utf-8")


def test_the_page_states_the_noise_and_its_length_as_they_are() -> None:
    """The norm of the noise on the mean, over that of the updates' bound: noise * sqrt(parameters) / owners."""
    rows = re.findall(r"^\| ε = (\d+), (\d+) owners \| ([\d.]+) \|(.*)\|$", PAGE, re.MULTILINE)
    assert len(rows) == 6
    for epsilon, owners, noise, lengths in rows:
        stated = epsilon_of(100 * rho_of(float(noise)), 1e-5)
        assert stated == pytest.approx(float(epsilon), rel=0.01)
        for length, parameters in zip(lengths.split("|"), (30, 1e3, 1e5, 1e7), strict=True):
            expected = float(noise) * math.sqrt(parameters) / int(owners)
            assert float(length.replace(" ", "")) == pytest.approx(expected, rel=0.03)


def test_the_page_states_epsilon_beside_the_accountants_as_it_is() -> None:
    rows = re.findall(
        r"^\| (\d+), (\d+) \| ([\d.]+) \| ([\d.]+), ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE
    )
    assert len(rows) == 4
    for noise, count, stated, *others in rows:
        epsilon = epsilon_of(int(count) * rho_of(float(noise)), 1e-5)
        assert float(stated) == pytest.approx(epsilon, abs=0.005)
        golden = GOLDEN[int(noise), int(count), 1e-5]
        assert [float(each) for each in others] == pytest.approx(golden, abs=0.006)
