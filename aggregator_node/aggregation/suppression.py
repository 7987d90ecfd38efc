"""Which counts of a column the aggregator keeps to itself. Pure.

A cell is one of the histogram's, and it is small where it has some examples and fewer than `min_cell`. The rules, on sums
over all counted owners:

1. A column of fewer than `min_cell` examples is suppressed wholly. Zeros are released: where nobody is, there is
   nobody to find.
2. A small cell is suppressed, and so is one at least of the others, because the cells add up to the count. Which one
   depends on where the small cells are and not on how large the others are: the nearest that is not empty.
3. What is suppressed adds up to at least min_cell + k - 2, of k cells. So, as far as the released numbers of the
   histogram say, each of them may have any number of examples from 1 to min_cell - 1, or more. Where no choice does
   that, all cells are suppressed, the empty ones too.
4. Count, mean and variance are three equations, which give the cells of a column that has only three values. So with
   a small cell four are suppressed, where as many are not empty; where they are not, the mean and the variance are.
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
    small = {place for place, cell in enumerate(cells) if 0 < cell < min_cell}
    if not small:
        return set()
    hidden, filled = set(small), {place for place, cell in enumerate(cells) if cell}
    wanted = _EQUATIONS + 1 if len(filled) > _EQUATIONS else 2
    for place in sorted(filled - small, key=lambda at: (min(abs(at - s) for s in small), at)):
        if len(hidden) >= wanted and _hide_each_other(cells, hidden, min_cell):
            break
        hidden.add(place)
    return hidden if _hide_each_other(cells, hidden, min_cell) else set(range(len(cells)))


def _hide_each_other(cells: Sequence[int], hidden: Collection[int], min_cell: int) -> bool:
    """Whether each of these may have min_cell - 1 examples though all others have one."""
    others = len(hidden) - 1
    return others > 0 and sum(cells[place] for place in hidden) >= min_cell - 1 + others


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
    return not hidden or sum(cells[place] > 0 for place in hidden) > _EQUATIONS
