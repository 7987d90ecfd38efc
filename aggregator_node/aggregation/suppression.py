"""Which counts of a column the aggregator keeps to itself. Pure.

A cell is one of the histogram's, and it is small where it has some examples and fewer than `min_cell`. The rules, on sums
over all counted owners:

1. A column of fewer than `min_cell` examples is suppressed wholly. One of none is released: there is nobody to find.
2. Where a cell is small, every cell of fewer than `min_cell` is suppressed, empty ones too. So nobody sees where in the
   range the few are, and the largest value of one patient is not known to the width of a cell.
3. Two cells at least are suppressed, and together they have at least `min_cell` examples, because all cells add up to the
   count: further ones are taken until that is so. By the released numbers of the histogram, each of them may have any
   number of examples from 0 to min_cell - 1, or more. Which ones are taken depends on where the others are and not on
   how large any is: the nearest.
4. Count, mean and variance are three equations, which give the cells of a column that has three values. So with a small
   cell four that are not empty are suppressed, where there are as many; where there are not, the mean and the variance are.
5. The mean and the variance are suppressed as well where fewer than `min_cell` examples lie within low .. high, and
   where the sum of all distances from either end is above zero and below `min_cell` ranges. Of a column that has
   the ends as its only values, that sum is a cell.

It is cell suppression with complementary cells (Hundepool et al. 2012, Statistical Disclosure Control, chapter 4).
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

from cairn.protocol.statistics import STEPS, SUPPRESSED, Statistics, counts_of

_EQUATIONS = 3  # count, mean and variance


def suppressed_pieces(statistics: Statistics, result: Iterable[memoryview]) -> Iterator[memoryview]:
    """The bytes of a sum of counts, without those that are too small."""
    payload = bytearray().join(result)
    for counts in counts_of(statistics, payload).values():
        moments, cells = suppressed(
            counts.moments.tolist(), counts.histogram.tolist(), statistics.min_cell
        )
        counts.moments[:], counts.histogram[:] = moments, cells
    yield memoryview(payload)


def suppressed(
    moments: Sequence[int], cells: Sequence[int], min_cell: int
) -> tuple[list[int], list[int]]:
    """A column's moments and cells as they are released."""
    count, total, squares = moments
    if 0 < count < min_cell:
        return [SUPPRESSED] * len(moments), [SUPPRESSED] * len(cells)
    hidden = _hidden(cells, min_cell)
    if not _may_tell_moments(count, total, cells, hidden, min_cell):
        total = squares = SUPPRESSED
    shown = [SUPPRESSED if place in hidden else cell for place, cell in enumerate(cells)]
    return [count, total, squares], shown


def _hidden(cells: Sequence[int], min_cell: int) -> set[int]:
    """The places of the cells that are suppressed."""
    if not any(0 < cell < min_cell for cell in cells):
        return set()
    few = {place for place, cell in enumerate(cells) if cell < min_cell}
    others = sorted(set(range(len(cells))) - few, key=lambda at: min(abs(at - s) for s in few))
    has_enough = _filled(cells, range(len(cells))) > _EQUATIONS
    hidden, wanted = set(few), _EQUATIONS + 1 if has_enough else 0
    for place in others:
        total = sum(cells[hid] for hid in hidden)
        if len(hidden) > 1 and total >= min_cell and _filled(cells, hidden) >= wanted:
            break
        hidden.add(place)
    return hidden


def _filled(cells: Sequence[int], places: Collection[int]) -> int:
    return sum(cells[place] > 0 for place in places)


def _may_tell_moments(
    count: int, total: int, cells: Sequence[int], hidden: Collection[int], min_cell: int
) -> bool:
    if not count:
        return True
    from_ends = (count * STEPS // 2 + total, count * STEPS // 2 - total)
    if any(0 < distance < min_cell * STEPS for distance in from_ends):
        return False
    if sum(cells[1:-1]) < min_cell:
        return False
    return not hidden or _filled(cells, hidden) > _EQUATIONS
