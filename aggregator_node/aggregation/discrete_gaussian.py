"""Exact draws of the discrete Gaussian: an integer x has a probability in proportion to exp(-x**2 / (2 * sigma**2)). Pure.

This is N_Z(0, sigma**2) of Canonne, Kamath and Steinke (2020, arXiv 2004.00010). They draw by rejection from a discrete
Laplace distribution; so does this, from one whose proposals are random bits, put together:

    x = s * (k * 2**b + u),    s a sign, u uniform below 2**b, k geometric: P(k) = 2**-(k + 1),

where 2**b is the power of two from 0.7 to 1.4 times sigma, or 1. A proposal has the probability 2**-(k + b + 2), and it is accepted
with the probability

    p = 2**k * exp(-x**2 / (2 * sigma**2)) / bound,

where `bound` is at least the largest of 2**k * exp(-(k * 2**b)**2 / (2 * sigma**2)), so that p is at most 1. Zero with the
negative sign is no proposal, so that zero does not come twice. What is accepted has the distribution above, whatever the
bound; about every second proposal is.

No decision is rounded. A proposal is accepted where a uniform real number B is below p. Of B, 40 bits are drawn, and p is
computed in binary64 to within 2**-33 (`_approximate`). Where both are within 2**-30 of each other, further bits of B are drawn and p
is enclosed ever more closely in decimal arithmetic until one is clearly below the other (`_is_accepted`): once in 2**29
proposals. The 24 bits of which k is the number of trailing zeros are sometimes all zero; then k goes on in further words.

Time: 0.7 s for ten million draws (`python -m bench rules`), which depends on the bits alone. Memory: 2 MiB.
"""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.key_stream import KeyStream, Words

MAX_SIGMA = 2**54

_PROPOSALS = 1 << 14  # at once
_GEOMETRIC_BITS = 24
_UNIFORM_BITS = 40
_ONE, _SIGN, _GEOMETRIC = np.uint64(1), np.uint64(63), np.uint64(_GEOMETRIC_BITS)
_GEOMETRIC_MASK = np.uint64((1 << _GEOMETRIC_BITS) - 1)
_DOUBT = 2.0**-30
_NEGLIGIBLE = 24.0  # exp(-24) < 2**-34
_HALVINGS = 6
# Of exp(z), from the highest: z is within -0.375 and 0, where what follows is below 2**-40.
_TAYLOR = [1 / math.factorial(power) for power in range(10, -1, -1)]


class DiscreteGaussian:
    """Draws of one sigma from one source. One call at a time."""

    def __init__(self, sigma: Fraction, source: KeyStream) -> None:
        """`sigma`, the scale, is above 0 and at most 2**54; the standard deviation is the same, unless it is small."""
        if not 0 < sigma <= MAX_SIGMA:
            raise ValueError(f"a sigma is above 0 and at most {MAX_SIGMA}, and not {sigma}")
        self._source = source
        self._twice_variance = 2 * sigma * sigma
        self._width_bits = max(0, int(sigma * Fraction(7, 5)).bit_length() - 1)
        self._offset_mask = np.uint64((1 << self._width_bits) - 1)
        self._bound = _bound(1 << self._width_bits, self._twice_variance)
        self._floats = np.zeros((3, _PROPOSALS))
        self._integers = np.zeros((2, _PROPOSALS), np.int64)

    def add_to(self, values: NDArray[np.int64]) -> None:
        """Add a draw of its own to each of the values."""
        begin = 0
        while begin < len(values):
            draws = self._draws()[: len(values) - begin]
            values[begin : begin + len(draws)] += draws
            begin += len(draws)

    def erase(self) -> None:
        """Overwrite what is left of the last draws."""
        self._source.erase()
        self._floats.fill(0)
        self._integers.fill(0)

    def _draws(self) -> NDArray[np.int64]:
        """The accepted of the next proposals, in their order.

        The order matters: the caller leaves out the last ones, which must not be those that were hard to decide.
        """
        words = self._source.words(2 * _PROPOSALS)
        signed, drawn = words[:_PROPOSALS], words[_PROPOSALS:]
        sizes, work = self._integers
        ks = _trailing_zeros(drawn, work.view(np.uint64))
        np.left_shift(ks, self._width_bits, out=sizes, dtype=np.int64)
        sizes |= np.bitwise_and(signed, self._offset_mask, out=work.view(np.uint64)).view(np.int64)
        margins = self._approximate(sizes, ks)
        uniforms = np.right_shift(drawn, _GEOMETRIC, out=drawn)
        margins -= np.multiply(uniforms.view(np.int64), 2.0**-_UNIFORM_BITS, out=self._floats[2])
        accepted = margins > 0
        in_doubt = (np.abs(margins, out=margins) <= _DOUBT) | (ks == _GEOMETRIC_BITS)
        if in_doubt.any():
            self._settle(np.flatnonzero(in_doubt), ks, uniforms, accepted)
        # A sign of 0 leaves a size as it is, and one of -1 turns it, in two's complement.
        np.negative(np.right_shift(signed, _SIGN, out=signed).view(np.int64), out=work)
        accepted &= (sizes != 0) | (work == 0)
        np.subtract(np.bitwise_xor(sizes, work, out=sizes), work, out=sizes)
        return sizes[np.flatnonzero(accepted)]

    def _settle(
        self,
        places: NDArray[np.intp],
        ks: NDArray[np.uint8],
        uniforms: Words,
        accepted: NDArray[np.bool_],
    ) -> None:
        """Decide the proposals at these places exactly, and complete those whose k goes on."""
        sizes = self._integers[0]
        for place in places:
            size, k = int(sizes[place]), int(ks[place])
            if k == _GEOMETRIC_BITS:
                more = self._further_zeros()
                size, k = size + (more << self._width_bits), k + more
            accepted[place] = self._is_accepted(size, k, int(uniforms[place]))
            if accepted[place]:
                sizes[place] = size

    def _approximate(self, sizes: NDArray[np.int64], ks: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Each p in binary64, to within 2**-33.

        It is exp(-y) with y = x**2 / (2 * sigma**2) - k * log(2) + log(bound), which is 0 at least and beyond 24 counts as
        24, where p is below 2**-34. Up to there no term is above 41 and each is good to 2**-49 of itself, so y is good to
        2**-42. Taylor's series gives exp(-y / 64) to 2**-40 of itself, and six squarings make that 2**-34.
        """
        y, power, work = self._floats
        np.multiply(sizes, math.sqrt(1 / self._twice_variance), out=y)
        np.multiply(y, y, out=y)
        np.multiply(ks, math.log(2), out=work)
        np.subtract(y, work, out=y)
        np.add(y, math.log(self._bound), out=y)
        np.minimum(y, _NEGLIGIBLE, out=y)
        np.multiply(y, -(0.5**_HALVINGS), out=y)
        power.fill(_TAYLOR[0])
        for coefficient in _TAYLOR[1:]:
            np.multiply(power, y, out=power)
            np.add(power, coefficient, out=power)
        for _ in range(_HALVINGS):
            np.multiply(power, power, out=power)
        return power

    def _further_zeros(self) -> int:
        """How many zeros there are before the next one in the bits of further words."""
        zeros = 0
        while not (word := self._source.word()):
            zeros += 64
        return zeros + (word & -word).bit_length() - 1

    def _is_accepted(self, size: int, k: int, uniform: int) -> bool:
        """Whether B, of which `uniform` has the first 40 bits, is below the p of this size and k."""
        bits, exponent = _UNIFORM_BITS, -(size * size) / self._twice_variance
        while True:
            enclosed = exp_bounds(exponent, 20 + bits // 3)
            low, high = (bound * 2**k / self._bound for bound in enclosed)
            if Fraction(uniform + 1, 1 << bits) <= low:
                return True
            if Fraction(uniform, 1 << bits) >= high:
                return False
            uniform = uniform << 64 | self._source.word()
            bits += 64


def _trailing_zeros(words: Words, work: Words) -> NDArray[np.uint8]:
    """How many of the low 24 bits of each word are zeros below all ones."""
    np.subtract(words, _ONE, out=work)
    np.bitwise_xor(np.bitwise_or(work, words, out=work), words, out=work)  # ones in their places
    return np.bitwise_count(np.bitwise_and(work, _GEOMETRIC_MASK, out=work))


def exp_bounds(exponent: Fraction, digits: int) -> tuple[Fraction, Fraction]:
    """Numbers below and above exp(exponent), which agree in so many decimal digits or nearly.

    Python's decimal arithmetic rounds every result correctly, that of `exp` to nearest.
    """
    down, up = (
        Context(digits, rounding, -(10**9), 10**9) for rounding in (ROUND_FLOOR, ROUND_CEILING)
    )
    low, high = (
        context.divide(Decimal(exponent.numerator), Decimal(exponent.denominator)).exp(context)
        for context in (down, up)
    )
    return Fraction(down.next_minus(low)), Fraction(up.next_plus(high))


def _bound(width: int, twice_variance: Fraction) -> Fraction:
    """A number that 2**k * exp(-(k * width)**2 / twice_variance) exceeds for no k, and hardly above the largest.

    As width is more than 0.7 times sigma, it falls from k = 1 on.
    """
    return max(Fraction(1), 2 * exp_bounds(-(width**2) / twice_variance, 40)[1])
