"""Multi-Krum, the geometric median and centred clipping, held against NumPy on the vectors themselves."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregator_node.aggregation.centred_clipping import clipped
from aggregator_node.aggregation.distances import FARTHEST, squared_distances
from aggregator_node.aggregation.exact_sum import BLOCK
from aggregator_node.aggregation.geometric_median import weiszfeld
from aggregator_node.aggregation.multi_krum import selected
from aggregator_node.aggregation.weighted_updates import capped
from cairn.model.schema import DTYPES, Schema, TensorSpec
from cairn.model.validation import runs_of
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.aggregation.rule_cases import (
    cases,
    combined,
    random_updates,
    reading,
    reading_deltas,
    released,
    schema_of,
)

FLOATING = ("F16", "BF16", "F32", "F64")
# Of the result: a weight has 16 bits, and F16 and BF16 have 11 and 8.
TOLERANCE = {"F16": 2e-3, "BF16": 1.6e-2, "F32": 1e-4, "F64": 1e-4}
RESOLUTION = 2.0**-16


def vectors(updates: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    return np.array([update.astype(np.float64) for update in updates])


def matrix_of(points: NDArray[np.float64]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = ((points[:, None] - points) ** 2).sum(axis=2)
    return squares


def distances_of(points: NDArray[np.float64]) -> list[list[float]]:
    return [list(map(float, row)) for row in matrix_of(points)]


def krum(points: NDArray[np.float64], byzantine: int, select: int) -> list[int]:
    """Blanchard et al. 2017, section 5: the m lowest sums over the n - f - 2 closest others."""
    apart = matrix_of(points)
    np.fill_diagonal(apart, np.inf)
    closest = np.sort(apart, axis=1)[:, : len(points) - byzantine - 2]
    order: list[int] = np.argsort(closest.sum(axis=1), kind="stable")[:select].tolist()
    return order


def rfa(points: NDArray[np.float64], iterations: int, smoothing: float) -> NDArray[np.float64]:
    """Pillutla et al. 2022, algorithm 2, on the vectors."""
    z: NDArray[np.float64] = points.mean(axis=0)
    for _ in range(iterations):
        weights = 1 / np.maximum(smoothing, np.linalg.norm(points - z, axis=1))
        z = weights @ points / weights.sum()
    return z


def centred(
    points: NDArray[np.float64], centre: NDArray[np.float64], norm: float, iterations: int
) -> NDArray[np.float64]:
    """Karimireddy et al. 2021, algorithm 2, on the vectors."""
    v = centre
    for _ in range(iterations):
        apart = points - v
        lengths = np.maximum(np.linalg.norm(apart, axis=1), 1e-300)
        v = v + (apart * np.minimum(1, norm / lengths)[:, None]).mean(axis=0)
    return v


@pytest.mark.parametrize("dtype", FLOATING)
@settings(max_examples=20, deadline=None)
@given(case=cases)
def test_distances_are_those_of_the_vectors_in_binary64_to_six_digits(
    dtype: str, case: tuple[int, int, int]
) -> None:
    updates = random_updates(dtype, *case)
    schema = schema_of(dtype, len(updates[0]))
    reads = [reading(schema, update.tobytes()) for update in updates]
    found = squared_distances(list(runs_of(schema)), reads)
    assert np.allclose(found, distances_of(vectors(updates)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("owners", [2, 9, 20])
def test_distances_add_up_over_blocks_and_runs_and_leave_integers_out(owners: int) -> None:
    schema = Schema.of(
        [
            TensorSpec("a", "F32", (BLOCK + 1500,)),
            TensorSpec("b", "F64", (70,)),
            TensorSpec("c", "BF16", (3,)),
            TensorSpec("n", "I64", (20,)),
        ]
    )
    parts = [random_updates(tensor.dtype, owners, tensor.shape[0], 1) for tensor in schema.tensors]
    reads = [
        reading(schema, b"".join(part[owner].tobytes() for part in parts))
        for owner in range(owners)
    ]
    found = squared_distances(list(runs_of(schema)), reads)
    floats = [part for part in parts if part[0].dtype.kind in "fV"]
    points = np.array(
        [
            np.concatenate([part[owner].astype(np.float64) for part in floats])
            for owner in range(owners)
        ]
    )
    assert np.allclose(found, distances_of(points), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("dtype", "value"), [("F32", 3e38), ("F64", 1.7e308)])
def test_what_lies_beyond_the_range_of_squares_is_the_farthest_and_nothing_else_changes(
    dtype: str, value: float
) -> None:
    updates = random_updates(dtype, 4, 10, 3)
    updates[3][5] = value
    schema = schema_of(dtype, 10)
    reads = [reading(schema, update.tobytes()) for update in updates]
    found = squared_distances(list(runs_of(schema)), reads)
    assert found[3][:3] == [FARTHEST] * 3
    assert np.allclose(
        np.array(found)[:3, :3], distances_of(vectors(updates[:3])), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("dtype", FLOATING)
@settings(max_examples=20, deadline=None)
@given(case=cases)
def test_multi_krum_is_the_exact_mean_of_those_that_the_papers_formula_selects(
    dtype: str, case: tuple[int, int, int]
) -> None:
    updates = random_updates(dtype, *case)
    chosen = krum(vectors(updates), 3, 5)
    assert selected(distances_of(vectors(updates)), 3, 5) == set(chosen)
    result = combined(pb.RULE_MULTI_KRUM, updates)
    assert np.array_equal(result, combined(pb.RULE_MEAN, [updates[i] for i in chosen]))


def test_multi_krum_takes_the_first_of_equals() -> None:
    updates = [np.array([float(number)], np.float32) for number in (0, 0, 9, 0, 0, 0, 0)]
    assert selected(distances_of(vectors(updates)), 1, 3) == {0, 1, 3}


@pytest.mark.parametrize("dtype", FLOATING)
@settings(max_examples=20, deadline=None)
@given(case=cases)
def test_a_geometric_median_is_that_of_the_papers_algorithm_on_the_vectors(
    dtype: str, case: tuple[int, int, int]
) -> None:
    updates = random_updates(dtype, *case)
    expected = rfa(vectors(updates), 8, 1e-6)
    weights = weiszfeld(distances_of(vectors(updates)), 8, 1e-6)
    assert np.allclose(np.array(weights) @ vectors(updates), expected, atol=1e-5)
    if max(weights) < 1 / 2:  # else the cap, which is not the paper's, changes it
        result = combined(pb.RULE_GEOMETRIC_MEDIAN, updates).astype(np.float64)
        assert np.allclose(result, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", FLOATING)
@settings(max_examples=20, deadline=None)
@given(case=cases, norm=st.sampled_from([0.01, 0.5, 1.0, 2.0, 1e6]), iterations=st.integers(1, 9))
def test_centred_clipping_is_that_of_the_papers_algorithm_on_the_vectors(
    dtype: str, case: tuple[int, int, int], norm: float, iterations: int
) -> None:
    updates = random_updates(dtype, *case)
    base = random_updates(dtype, 1, case[1], 5)[0]
    points = vectors([*updates, base])
    expected = centred(points[:-1], points[-1], norm, iterations)
    weights = clipped(distances_of(points), norm, iterations)
    assert math.isclose(math.fsum(weights), 1, rel_tol=1e-12)
    assert np.allclose(np.array(weights) @ points, expected, atol=1e-5)
    if (
        max(weights[:-1]) <= sum(weights[:-1]) / 2
    ):  # else the cap, which is not the paper's, changes it
        numbers = {"norm": norm, "iterations": iterations}
        result = combined(pb.RULE_CENTRED_CLIPPING, updates, numbers, base).astype(np.float64)
        reach = float(
            np.sqrt(matrix_of(points).max())
        )  # what a weight is off moves the result by so much of it
        within = TOLERANCE[dtype] + RESOLUTION * reach
        assert np.allclose(result, expected, rtol=TOLERANCE[dtype], atol=within)


@pytest.mark.parametrize("norm", [1e-12, 4e-9, 1e-3])
@pytest.mark.parametrize("nearest", [0.5, 0.9])
def test_centred_clipping_has_a_part_of_every_owner_however_small_the_norm_is(
    norm: float, nearest: float
) -> None:
    """Elements that are zero in the base show what is left of the updates to 24 bits, whatever their size."""
    updates = random_updates("F32", 10, 20, 7)
    updates[0] = (nearest * updates[0]).astype(np.float32)
    base = np.zeros(20, np.float32)
    expected = centred(vectors(updates), base.astype(np.float64), norm, 1)
    numbers = {"norm": norm, "iterations": 1}
    result = combined(pb.RULE_CENTRED_CLIPPING, updates, numbers, base, floor=3)
    assert result.astype(np.float64) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("iterations", [1, 5])
def test_an_owner_that_is_moved_little_while_all_others_are_moved_far_has_no_more_than_its_part(
    iterations: int,
) -> None:
    """Its only 1 shows its weight, and the others' only 2**20 theirs; the base is known and hides nobody."""
    far = np.array([0, 2.0**20], np.float32)
    updates = [np.array([1, 0], np.float32), *[far] * 8]
    numbers = {"norm": 1.0, "iterations": iterations}
    of_one, of_others = combined(
        pb.RULE_CENTRED_CLIPPING, updates, numbers, np.zeros(2, np.float32), floor=3
    )
    weights = np.array([of_one, of_others / 2.0**20])
    assert weights.min() > 0
    assert weights[0] / weights.sum() == pytest.approx(1 / 3, rel=1e-6)


@pytest.mark.parametrize("owners", [9, 10, 49, 98])
def test_centred_clipping_that_clips_nothing_is_the_mean_to_the_bit(owners: int) -> None:
    updates = random_updates("F32", owners, 200, 1)
    numbers = {"norm": 1e6, "iterations": 1}
    result = combined(pb.RULE_CENTRED_CLIPPING, updates, numbers, np.zeros(200, np.float32))
    assert result.tobytes() == combined(pb.RULE_MEAN, updates).tobytes()


@pytest.mark.parametrize("dtype", ["I8", "I64", "BOOL"])
def test_integers_are_the_mean_of_those_whose_floats_count(dtype: str) -> None:
    schema = Schema.of([TensorSpec("f", "F32", (3,)), TensorSpec("n", dtype, (6,))])
    floats, counts = random_updates("F32", 9, 3, 1), random_updates(dtype, 9, 6, 2)
    pairs = list(zip(floats, counts, strict=True))
    is_first = next(iter(runs_of(schema))).dtype == "F32"
    reads = [
        reading(schema, a.tobytes() + b.tobytes() if is_first else b.tobytes() + a.tobytes())
        for a, b in pairs
    ]
    chosen = krum(vectors(floats), 3, 5)
    for rule, of in ((pb.RULE_MULTI_KRUM, chosen), (pb.RULE_CENTRED_CLIPPING, range(9))):
        base = bytes(schema.total_bytes) if rule == pb.RULE_CENTRED_CLIPPING else None
        payload = released(rule, schema, reads, base=base)
        part = payload[12:] if is_first else payload[:-12]
        expected = combined(pb.RULE_MEAN, [counts[i] for i in of])
        assert np.array_equal(np.frombuffer(part, DTYPES[dtype]), expected)


@pytest.mark.parametrize(
    "rule", [pb.RULE_MULTI_KRUM, pb.RULE_GEOMETRIC_MEDIAN, pb.RULE_CENTRED_CLIPPING]
)
def test_deltas_are_weighed_as_whole_updates_are(rule: "pb.Rule") -> None:
    """An update in deltas is a model as well: that of the base and them."""
    generator = np.random.default_rng(6)
    base = generator.normal(0, 1, 100).astype(np.float32)
    deltas = generator.integers(-99, 99, (9, 100)) * 2.0**-10
    payload = released(
        rule,
        schema_of("F32", 100),
        [reading_deltas(row) for row in deltas],
        base=base.tobytes(),
        are_deltas=True,
    )
    whole = combined(rule, [row.astype(np.float32) for row in deltas], base=0 * base)
    halves = np.abs(whole - (np.frombuffer(payload, np.float32) - base))
    assert np.all(halves <= np.abs(whole) * 2.0**-8 + 1e-6)


@given(
    weights=st.lists(st.floats(1e-12, 1e6), min_size=2, max_size=40),
    floor=st.integers(2, 20),
)
def test_no_weight_is_above_its_part_and_a_lighter_one_is_never_made_heavier(
    weights: list[float], floor: int
) -> None:
    floor = min(floor, len(weights))
    whole = capped(weights, floor)
    assert max(whole) * floor <= sum(whole)
    assert sum(weight > 0 for weight in whole) >= floor
    lightest_first = [weight for _, weight in sorted(zip(weights, whole, strict=True))]
    assert lightest_first == sorted(lightest_first)


def test_weights_below_the_cap_stay_in_proportion() -> None:
    whole = capped([4.0, 2.0, 3.0, 1.0], 2)
    assert [Fraction(weight, whole[0]) for weight in whole] == [
        1,
        Fraction(1, 2),
        Fraction(3, 4),
        Fraction(1, 4),
    ]


def test_the_cap_is_as_high_as_it_can_be() -> None:
    """Of 10, 1, 1, 1 above a floor of three, the first is lowered to 1.5 of 4.5."""
    whole = capped([10.0, 1.0, 1.0, 1.0], 3)
    assert math.isclose(whole[0] / sum(whole), 1 / 3, rel_tol=4 * RESOLUTION)


def test_without_the_cap_an_update_at_the_median_would_have_nearly_all_of_the_weight() -> None:
    points = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert weiszfeld(distances_of(points), 8, 1e-6)[0] > 0.999
    for floor in (2, 3, 5):
        whole = capped(weiszfeld(distances_of(points), 8, 1e-6), floor)
        assert 0.99 / floor < whole[0] / sum(whole) <= 1 / floor


@pytest.mark.parametrize("floor", [2, 3, 5])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("rule", [pb.RULE_GEOMETRIC_MEDIAN, pb.RULE_CENTRED_CLIPPING])
def test_sybils_all_around_one_honest_owner_give_it_no_more_than_its_part(
    rule: "pb.Rule", spread: float, floor: int
) -> None:
    """They place themselves in pairs on both sides of it, so that it lies at the median; its only 1 shows its weight."""
    target = np.zeros(40)
    target[0] = 1
    generator = np.random.default_rng(1)
    updates, base = [target], target.copy()
    for _ in range(6):
        aside = generator.normal(0, spread, 40)
        aside[0] = 0
        updates += [np.where(np.arange(40), sign * aside, 0) for sign in (1, -1)]
    base[0] = 0
    numbers: dict[str, float] = {"iterations": 100}
    numbers |= {"smoothing": 1e-9} if rule == pb.RULE_GEOMETRIC_MEDIAN else {"norm": min(spread, 2)}
    result = combined(rule, updates, numbers, base, floor)
    assert 0 <= result[0] <= 1 / floor
