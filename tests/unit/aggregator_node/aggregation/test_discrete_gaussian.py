"""The noise has exactly the distribution that it says, and its bits are those of a cipher."""

from collections.abc import Sequence
from fractions import Fraction

import mpmath  # type: ignore[import-untyped]  # it has no types
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]  # its types are a package of their own

from aggregator_node.aggregation import discrete_gaussian
from aggregator_node.aggregation.discrete_gaussian import DiscreteGaussian, exp_bounds
from aggregator_node.aggregation.key_stream import KeyStream, Words, fresh_key

KEY = bytes(range(32))
LARGE = Fraction(75_591_424_409)  # as in a job with noise = 1.1


def draws(sigma: Fraction, count: int, source: KeyStream | None = None) -> NDArray[np.int64]:
    values = np.zeros(count, np.int64)
    DiscreteGaussian(sigma, source or KeyStream(KEY)).add_to(values)
    return values


def probabilities(sigma: Fraction, farthest: int) -> list[float]:
    """Of the integers from -farthest to farthest, by the definition."""
    with mpmath.workdps(40):
        variance = mpmath.mpf(sigma.numerator) ** 2 / mpmath.mpf(sigma.denominator) ** 2
        masses = [mpmath.exp(-(x**2) / (2 * variance)) for x in range(-farthest, farthest + 1)]
        total = mpmath.fsum(masses)
        return [float(mass / total) for mass in masses]


@pytest.mark.parametrize("sigma", ["0.3", "0.8", "2.5", "3.3", "4", "5.6", "40"])
def test_small_draws_have_the_probabilities_of_the_discrete_gaussian(sigma: str) -> None:
    """Pearson's test, over all integers of which 20 or more are expected; sigmas of every kind of bound."""
    exact, count = Fraction(sigma), 1_000_000
    farthest = 1 + int(exact * 40)
    expected = np.array(probabilities(exact, farthest)) * count
    found = np.bincount(draws(exact, count) + farthest, minlength=len(expected))
    assert len(found) == len(expected)
    often = expected >= 20
    expected = np.append(expected[often], expected[~often].sum())
    found = np.append(found[often], found[~often].sum())
    if expected[-1] < 20:
        expected, found = expected[:-1] * found[:-1].sum() / expected[:-1].sum(), found[:-1]
    assert stats.chisquare(found, expected).pvalue > 0.01


def test_large_draws_have_the_shape_of_a_gaussian_and_uniform_low_bits() -> None:
    """At so large a sigma the discrete one and the continuous one are the same to far more digits than a test sees."""
    values = draws(LARGE, 1_000_000)
    scaled = values / float(LARGE)
    edges = stats.norm.ppf(np.linspace(0, 1, 1001)[1:-1])
    found = np.bincount(np.searchsorted(edges, scaled), minlength=1000)
    assert stats.chisquare(found).pvalue > 0.01
    assert stats.kstest(scaled, "norm").pvalue > 0.01
    for shift in (0, 10, 20):
        assert stats.chisquare(np.bincount(values >> shift & 255, minlength=256)).pvalue > 0.01
    tails = [float(np.mean(np.abs(scaled) > size)) for size in (2, 3, 4)]
    assert tails == pytest.approx([2 * stats.norm.sf(size) for size in (2, 3, 4)], rel=0.15)


def test_draws_depend_on_no_other_draw() -> None:
    values = draws(LARGE, 1_000_000) / float(LARGE)
    for apart in (1, 2, 1000):
        assert abs(float(np.mean(values[apart:] * values[:-apart]))) < 4e-3


@pytest.mark.parametrize("sigma", [Fraction(4), Fraction("5.6"), LARGE], ids=str)
def test_each_decision_in_binary_arithmetic_is_the_exact_one(
    monkeypatch: pytest.MonkeyPatch, sigma: Fraction
) -> None:
    monkeypatch.setattr(discrete_gaussian, "_PROPOSALS", 1 << 11)
    fast = draws(sigma, 1_000)
    monkeypatch.setattr(discrete_gaussian, "_DOUBT", 2.0)  # nothing is clear
    assert draws(sigma, 1_000).tolist() == fast.tolist()


class Scripted(KeyStream):
    """Proposals that are clearly rejected, but for the second, which is given, and the last, which is a zero."""

    def __init__(self, signed: int, drawn: int, further: Sequence[int]) -> None:
        super().__init__(KEY)
        self._signed, self._drawn = signed, drawn
        self._further = list(further)

    def words(self, count: int) -> Words:
        half = count // 2
        words = np.zeros(count, np.uint64)
        words[half:] = 2**64 - 2**5  # k is 5 and B the largest there is
        words[1], words[half + 1] = self._signed, self._drawn
        words[-1] = 1  # k is 0 and B the smallest
        return words

    def word(self) -> int:
        return self._further.pop(0)


def first_draw(sigma: str, signed: int, drawn: int, further: Sequence[int]) -> int:
    return int(draws(Fraction(sigma), 1, Scripted(signed, drawn, further))[0])


def test_a_proposal_that_40_bits_do_not_decide_is_decided_by_further_ones() -> None:
    """With sigma = 0.8 a size is k, and p is 2**k * exp(-k**2 / 1.28)."""
    with mpmath.workdps(80):
        p = 2 * mpmath.exp(-1 / mpmath.mpf("1.28"))
        digits = int(mpmath.floor(p * 2**168))  # 40 bits and two words
    first, second, third = digits >> 128, digits >> 64 & 2**64 - 1, digits & 2**64 - 1
    drawn = first << 24 | 0b10  # k is 1
    assert first_draw("0.8", 0, drawn, [second - 1]) == 1
    assert first_draw("0.8", 0, drawn, [second + 1]) == 0  # rejected: the last proposal is a zero
    assert first_draw("0.8", 0, drawn, [second, third - 1]) == 1
    assert first_draw("0.8", 0, drawn, [second, third + 1]) == 0
    assert first_draw("0.8", 2**63, drawn, [second, third - 1]) == -1


def test_a_k_whose_bits_are_all_zero_goes_on_in_further_words() -> None:
    """With sigma = 5.6 a size is 4 * k and two bits."""
    nothing = [0] * 60  # a B of nothing but zeros is below every p
    assert first_draw("5.6", 0b11, 0, [0b1000, *nothing]) == 4 * (24 + 3) + 3
    assert first_draw("5.6", 2**63, 0, [0, 0b10, *nothing]) == -4 * (24 + 64 + 1)
    assert first_draw("5.6", 0, 0, [0b1000, 2**64 - 1]) == 0


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.fractions(Fraction(1, 100), 20), st.fractions(20, 2**54)))
def test_no_proposal_would_have_to_be_accepted_with_a_probability_above_one(
    sigma: Fraction,
) -> None:
    """And the bound is no larger than it has to be, so that enough are accepted."""
    gaussian = DiscreteGaussian(sigma, KeyStream(KEY))
    width, bound = 1 << gaussian._width_bits, gaussian._bound
    with mpmath.workdps(60):
        half = mpmath.mpf(width * sigma.denominator) ** 2 / sigma.numerator**2 / 2
        weights = [2**k * mpmath.exp(-(k**2) * half) for k in range(30)]
        exact = mpmath.mpf(bound.numerator) / bound.denominator
        assert 0 <= exact - max(weights) < 1e-30
    assert width == 1 or Fraction("0.7") * sigma < width <= Fraction("1.4") * sigma


@settings(max_examples=50, deadline=None)
@given(st.fractions(-600, 0), st.integers(5, 60))
def test_an_exponential_is_enclosed(exponent: Fraction, digits: int) -> None:
    low, high = exp_bounds(exponent, digits)
    with mpmath.workdps(100):
        exact = mpmath.exp(mpmath.mpf(exponent.numerator) / exponent.denominator)
        assert mpmath.mpf(low.numerator) / low.denominator < exact
        assert exact < mpmath.mpf(high.numerator) / high.denominator
    assert high - low <= high * Fraction(1000, 10 ** (digits - 1))


def test_the_stream_is_that_of_aes_in_counter_mode() -> None:
    """The ciphertexts of the blocks 0 and 1 under the key of zeros, as known for AES-256."""
    known = bytes.fromhex("dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738b")
    stream = KeyStream(bytes(32))
    assert stream.words(3).astype("<u8").tobytes() == known[:24]
    assert stream.word() == int.from_bytes(known[24:], "little")


def test_every_key_is_another_and_nothing_is_left_of_a_stream_that_is_erased() -> None:
    assert len({fresh_key() for _ in range(100)}) == 100
    stream = KeyStream(fresh_key())
    words = stream.words(1000)
    assert words.any()
    stream.erase()
    assert not words.any()


@pytest.mark.parametrize("sigma", [0, -1, 2**54 + 1])
def test_a_sigma_out_of_range_is_refused(sigma: int) -> None:
    with pytest.raises(ValueError, match="above 0 and at most"):
        DiscreteGaussian(Fraction(sigma), KeyStream(KEY))
