"""How sums of weight * value keep every bit, so that their order cannot matter. Pure.

A sum is an expansion: several binary64 numbers, its levels, that add up to it without any error. Level 0
is dense, 8 bytes an element. A term is added to it by TwoSum (Knuth; Shewchuk 1997, doi
10.1007/PL00009321), which gives the rounded sum and its error as two binary64 numbers. Where the error
is not zero it is added to level 1 in the same way, whose error goes to level 2, and so on. An error
needs a value that is smaller than the sum by about 2**(29 - bits of its weight), so few elements
have a level 1: it and all below are kept for these elements only, in a `Carry` for each block.

Where the values of a block are so close together that no sum can be rounded (`spread`), nothing is lost and
TwoSum is not needed; else every sum is looked at.

Terms are exact. A product of a value of `bits` significant bits and a weight of which b bits are left
without its factors of two fits the 53 bits of binary64 where bits + b <= 53. Otherwise the value is cut
in two of at most 27 and 26 bits and the weight in digits of at most 26, and each product is a term.

How many levels: a term adds one at the most, so n terms need n. And where |sum| < 2**t and all terms are
multiples of 2**u, the errors of level k are 2**-53 of its sum each, and 2**12 terms (1,024 owners at two
each, the base and room to spare) sum up to 2**-41 of it: a level below which all of 53 bits lie at or
above 2**u makes no error, so there are at most 2 + (t - u - 53) / 41. For values up to 1e9 and a total
weight of 2**41, t is 71; F32, F16 and BF16 are multiples of 2**-149: 6 levels. F64, with u = -1074: 28.
Only values that were made for it, far apart in each update, need more than two or three.

Memory: 8 bytes for an element, and 10 for each level of an element that carries; where more than a
quarter of a block does, 8 for each level and element of that block. At worst 6 * 8 bytes an element.

F64 values above 2**976 are infinite here, whatever their order: below, no sum can leave the range.
An infinity or a NaN never leaves level 0 again; `Rounding` passes it on.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.exponent_range import BINARY64_BITS, ExponentRange, spread_of

BLOCK = 1 << 15  # elements: four binary64 arrays of a block stay in a cache of 1 MiB
LARGEST = 2.0**976

_DIGIT_BITS = 26
_LOW_BITS = (1 << _DIGIT_BITS) - 1
_DENSE = BLOCK // 4
_EVERY_PLACE = np.arange(BLOCK, dtype=np.uint16)

Floats = NDArray[np.float64]


def two_sum(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """The rounded sum and its error, whichever of the two is larger."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def exact_terms(values: NDArray[Any], bits: int, weight: int, out: Floats) -> Iterator[Floats]:
    """Terms without any error whose sum is weight * value; the first, often the only one, in `out`."""
    odd = weight // (weight & -weight)
    if odd == 1 or bits + odd.bit_length() <= BINARY64_BITS:
        np.copyto(out, values)
        if weight != 1:
            np.multiply(out, float(weight), out=out)
        yield out
        return
    whole = values.astype(np.float64)
    pieces = [whole]
    if bits > _DIGIT_BITS + 1:
        high = (whole.view(np.int64) & ~_LOW_BITS).view(np.float64)
        # A difference of equals is +0; so that negative zeros stay negative, it takes the sign over.
        pieces = [high, np.copysign(whole - high, whole)]
    into: Floats | None = out
    for piece in pieces:
        for digit in (weight & ~_LOW_BITS, weight & _LOW_BITS):
            if digit:
                yield np.multiply(piece, float(digit), out=into)
                into = None


def normalise(levels: list[Floats]) -> list[Floats]:
    """The same sums, each level at most half a unit in the last place of the one above.

    So the first level has the sign of the sum, and is zero only where the sum is.
    """
    levels = list(levels)
    changed = True
    while changed:
        changed = False
        for k in range(len(levels) - 1, 0, -1):
            upper, levels[k] = two_sum(levels[k - 1], levels[k])
            # Not `!=`, which a NaN would never satisfy.
            changed = changed or bool((np.abs(upper - levels[k - 1]) > 0).any())
            levels[k - 1] = upper
    return levels


class Carry:
    """The levels below the first, of those elements of one block that have any."""

    def __init__(self) -> None:
        self._places = np.empty(0, np.uint16)  # sorted, within the block of at most 2**16
        self._levels: list[Floats] = []

    def add(self, places: NDArray[np.intp], errors: Floats) -> None:
        """Add errors of level 0; the places are sorted and none comes twice."""
        where, depth = self._find(places), 0
        while len(where):
            if depth == len(self._levels):
                self._levels.append(np.zeros(len(self._places)))
            level = self._levels[depth]
            level[where], errors = two_sum(level[where], errors)
            left = np.abs(errors) > 0
            where, errors, depth = where[left], errors[left], depth + 1

    @property
    def nbytes(self) -> int:
        own = 0 if self._places is _EVERY_PLACE else self._places.nbytes
        return own + sum(level.nbytes for level in self._levels)

    def read(self) -> tuple[NDArray[np.intp], list[Floats]]:
        """The places where a level is not zero, and the levels there."""
        used = np.zeros(len(self._places), np.bool_)
        for level in self._levels:
            used |= level != 0
        return self._places[used].astype(np.intp), [level[used] for level in self._levels]

    def erase(self) -> None:
        for level in self._levels:
            level.fill(0)

    def _find(self, places: NDArray[np.intp]) -> NDArray[np.intp]:
        """Where these places stand; room is made for those that are new."""
        if len(self._places) == BLOCK:
            return places
        used = np.zeros(BLOCK, np.bool_)
        used[self._places] = True
        if not used[places].all():
            used[places] = True
            self._move(np.flatnonzero(used).astype(np.uint16))
            return self._find(places)
        return np.searchsorted(self._places, places.astype(np.uint16))

    def _move(self, places: NDArray[np.uint16]) -> None:
        """Make room for these places, which include all that there are."""
        if len(places) > _DENSE:
            places = _EVERY_PLACE
        where = np.searchsorted(places, self._places)
        for depth, level in enumerate(self._levels):
            self._levels[depth] = np.zeros(len(places))
            self._levels[depth][where] = level
            level.fill(0)
        self._places = places


class ExactSums:
    """The sums of one run of elements, block by block."""

    def __init__(self, sums: Floats) -> None:
        """Keep level 0 in `sums`; what is in it before the first update does not matter."""
        self._sums = sums
        self.carried_bytes = 0  # what the levels below the first take
        self._carries: dict[int, Carry] = {}
        # Of the sums, by the first element of the block.
        self._spreads: dict[int, ExponentRange] = {}
        self._floats = np.empty((3, BLOCK))
        self._bools = np.empty((2, BLOCK), np.bool_)

    def add(
        self, block: slice, values: NDArray[Any], bits: int, weight: int, *, first: bool
    ) -> None:
        """Add weight * value of at most `bits` significant bits; a first update overwrites."""
        sums = self._sums[block]
        if values.dtype == np.float64:
            values = _within_range(values)
        spread = spread_of(values, bits, self._floats[1].view(np.uint64)).weighted(weight)
        if not first:
            spread = self._spreads[block.start].plus(spread)
        self._spreads[block.start] = spread
        out = sums if first else self._floats[0, : len(sums)]
        for terms in exact_terms(values, bits, weight, out):
            if terms is sums:
                continue
            if spread.is_exact:
                np.add(sums, terms, out=sums)
            elif missed := self._add_terms(sums, terms):
                carry = self._carries.setdefault(block.start, Carry())
                before = carry.nbytes
                carry.add(*missed)
                self.carried_bytes += carry.nbytes - before

    def read(self, block: slice) -> tuple[Floats, Carry | None]:
        """Level 0, in place, and what is carried below it."""
        return self._sums[block], self._carries.get(block.start)

    def erase(self) -> None:
        """Overwrite what is below level 0 and in the scratch memory."""
        for carry in self._carries.values():
            carry.erase()
        self._carries.clear()
        self.carried_bytes = 0
        self._spreads.clear()
        self._floats.fill(0)

    def _add_terms(self, sums: Floats, terms: Floats) -> tuple[NDArray[np.intp], Floats] | None:
        """Add to level 0; returns the errors and their places, if there are any.

        The larger of the two operands is what the sum less the smaller gives back, rounded or not; no
        error was made if and only if both give back the other (Dekker 1971, doi 10.1007/BF01397083).
        """
        total, rest = self._floats[1:3, : len(sums)]
        exact, also = self._bools[:, : len(sums)]
        np.add(sums, terms, out=total)
        np.equal(np.subtract(total, sums, out=rest), terms, out=exact)
        np.equal(np.subtract(total, terms, out=rest), sums, out=also)
        np.bitwise_and(exact, also, out=exact)
        missed = None
        if not exact.all():
            places = np.flatnonzero(~exact)
            missed = places, two_sum(sums[places], terms[places])[1]
        np.copyto(sums, total)
        return missed


def _within_range(values: Floats) -> Floats:
    if max(values.max(), -values.min()) <= LARGEST:
        return values
    return np.where(np.abs(values) <= LARGEST, values, np.copysign(np.inf, values))
