"""Small cells are suppressed, and so is what they could be reckoned from."""

from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator_node.aggregation.suppression import suppressed, suppressed_pieces
from cairn.protocol.statistics import STEPS, SUPPRESSED, Column, Statistics, counts_of, schema_of

HALF = STEPS // 2
Cells = list[int]

# Mostly small, so that small cells are frequent and lie beside each other.
CELLS = st.lists(st.sampled_from([0, 0, 1, 2, 3, 4, 5, 9, 30, 1000]), min_size=3, max_size=9)
LEAST = st.integers(2, 6)


def of_values(cells: Cells, steps: list[int]) -> list[int]:
    """The moments of a column that has only these values, each as often as its cell says."""
    pairs = list(zip(cells, steps, strict=True))
    return [sum(cells), sum(n * v for n, v in pairs), sum(n * v * v for n, v in pairs)]


def spread(cells: Cells) -> list[int]:
    """The moments of a column whose values lie in the middles of its cells."""
    inside = len(cells) - 2
    middles = [round((i + 0.5) * STEPS / inside) - HALF for i in range(inside)]
    return of_values(cells, [-HALF, *middles, HALF])


@given(CELLS, LEAST)
def test_no_small_cell_is_released_and_what_is_released_is_true(cells: Cells, least: int) -> None:
    moments, shown = suppressed(spread(cells), cells, least)
    assert not any(0 < cell < least for cell in shown)
    assert all(cell in {SUPPRESSED, true} for cell, true in zip(shown, cells, strict=True))
    assert moments[0] in {SUPPRESSED, sum(cells)}
    assert (moments[1] == spread(cells)[1]) or moments[1:] == [SUPPRESSED, SUPPRESSED]


@given(CELLS, LEAST)
def test_by_the_released_histogram_a_suppressed_cell_may_have_anything_below_the_least(
    cells: Cells, least: int
) -> None:
    """For each such value there are other cells, none of them negative, that add up to the released count.

    Nor do the suppressed ones together have so few that their sum would be a small cell itself.
    """
    (count, *_), shown = suppressed(spread(cells), cells, least)
    hidden = shown.count(SUPPRESSED)
    if not hidden or count == SUPPRESSED:  # then not even the count is known
        return
    together = count - sum(cell for cell in shown if cell != SUPPRESSED)
    assert hidden > 1
    assert together >= least
    assert all(together - value >= 0 for value in range(least))


@given(CELLS, LEAST, st.randoms(use_true_random=False))
def test_where_in_the_range_the_few_are_is_not_released(
    cells: Cells, least: int, random: Random
) -> None:
    few = [place for place, cell in enumerate(cells) if cell < least]
    mixed, moved = random.sample(few, len(few)), list(cells)
    for place, other in zip(few, mixed, strict=True):
        moved[place] = cells[other]
    assert suppressed(spread(cells), cells, least)[1] == suppressed(spread(moved), moved, least)[1]


@given(CELLS, LEAST)
def test_a_histogram_without_small_cells_is_released_whole(cells: Cells, least: int) -> None:
    large = [cell and cell + least for cell in cells]
    assert suppressed(spread(large), large, least)[1] == large


@given(CELLS, LEAST)
def test_which_cells_are_suppressed_tells_nothing_of_how_large_the_others_are(
    cells: Cells, least: int
) -> None:
    larger = [cell + 7 if cell >= least else cell for cell in cells]
    places = [
        [cell == SUPPRESSED for cell in suppressed(spread(of), of, least)[1]]
        for of in (cells, larger)
    ]
    assert places[0] == places[1]


@pytest.mark.parametrize("count", [1, 9])
def test_a_column_of_too_few_examples_is_suppressed_wholly(count: int) -> None:
    cells = [0, count, 0]
    assert suppressed(spread(cells), cells, 10) == ([SUPPRESSED] * 3, [SUPPRESSED] * 3)


def test_a_column_of_no_example_is_released_as_that() -> None:
    assert suppressed([0, 0, 0], [0, 0, 0], 10) == ([0, 0, 0], [0, 0, 0])


@pytest.mark.parametrize("ones", [1, 9, 991, 999])
def test_the_mean_of_a_column_of_zeros_and_ones_is_released_only_where_there_are_enough_of_both(
    ones: int,
) -> None:
    """Its bins may be cut so that both are in one cell: then the sum alone would tell how many ones there are."""
    moments = of_values([1000 - ones, ones], [-HALF, HALF])
    assert suppressed(moments, [0, 1000, 0], 10)[0] == [1000, SUPPRESSED, SUPPRESSED]
    enough = of_values([990, 10], [-HALF, HALF])
    assert suppressed(enough, [0, 1000, 0], 10)[0] == enough


def test_the_mean_of_a_column_that_lies_outside_its_range_is_suppressed() -> None:
    cells = [500, 9, 500]
    assert suppressed(spread(cells), cells, 10)[0] == [1009, SUPPRESSED, SUPPRESSED]


@pytest.mark.parametrize("cells", [[0, 40, 3, 0], [0, 40, 3, 50, 0], [20, 3, 50, 0]])
def test_of_three_values_or_fewer_the_moments_are_suppressed_with_the_small_cell(
    cells: Cells,
) -> None:
    """Count, mean and variance are three equations."""
    (count, *moments), shown = suppressed(spread(cells), cells, 10)
    assert count == sum(cells)
    assert moments == [SUPPRESSED, SUPPRESSED]
    assert shown.count(SUPPRESSED) >= 2


def test_with_four_values_count_mean_and_variance_have_several_solutions() -> None:
    """Every column of four values that agrees with all that is released, found by trying them all."""
    least, steps = 5, [-HALF // 2, -HALF // 8, HALF // 8, HALF // 2]
    cells = [0, 11, 3, 13, 12, 0]
    full = of_values(cells, [-HALF, *steps, HALF])
    moments, shown = suppressed(full, cells, least)
    assert moments == full
    assert shown == [SUPPRESSED] * 6
    count = moments[0]
    found = set()
    for first, second, third in product(range(count + 1), repeat=3):
        fourth = count - first - second - third
        four = [first, second, third, fourth]
        if fourth >= 0 and of_values(four, steps) == moments:
            found.add(second)
    assert 3 in found
    assert len(found) > 1


def test_what_is_written_are_the_suppressed_sums_in_the_order_of_the_schema() -> None:
    statistics = Statistics((Column("a", 0, 1, 2), Column("b", 0, 1, 1)), 10)
    payload = bytearray(schema_of(statistics).total_bytes)
    for name, cells in (("a", [0, 40, 30, 0]), ("b", [0, 4, 0])):
        counts = counts_of(statistics, payload)[name]
        counts.moments[:], counts.histogram[:] = spread(cells), cells
    halves = [memoryview(payload)[:24], memoryview(payload)[24:]]
    released = counts_of(statistics, b"".join(suppressed_pieces(statistics, halves)))
    assert released["a"].histogram.tolist() == [0, 40, 30, 0]
    assert released["a"].moments.tolist() == spread([0, 40, 30, 0])
    assert np.concatenate([*vars(released["b"]).values()]).tolist() == [SUPPRESSED] * 6
