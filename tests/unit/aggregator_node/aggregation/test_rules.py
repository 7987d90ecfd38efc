"""What holds for every rule: one order, one machine, one floor, and what an attack does to it."""

import hashlib
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregator_node.aggregation.exact_sum import BLOCK
from aggregator_node.aggregation.rules import RULES
from cairn.errors import LimitExceeded, WrongState
from cairn.model.schema import DTYPES, FLOATS, Schema, TensorSpec
from cairn.model.validation import SIGNIFICANT_BITS
from cairn.protocol.aggregation import NUMBERS as CONTRACT
from cairn.protocol.aggregation import Aggregation
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.aggregation.rule_cases import (
    KINDS,
    NUMBERS,
    OF_FLOATS_ALONE,
    ORDERED,
    at_work,
    combined,
    random_updates,
    reading,
    reading_deltas,
    released,
    schema_of,
)

EVERY = sorted(RULES)
COLLECTING = [rule for rule in EVERY if RULES[rule].held_updates(9)]
# Updates of nothing but integers are all equally far apart, so that the drawn order selects.
WITHOUT_INTEGERS = {*OF_FLOATS_ALONE, pb.RULE_MULTI_KRUM}


def name(rule: "pb.Rule") -> str:
    return pb.Rule.Name(rule).removeprefix("RULE_").lower()


every_rule = pytest.mark.parametrize("rule", EVERY, ids=name)


def base_of(dtype: str, count: int) -> NDArray[Any]:
    return random_updates(dtype, 1, count, 99)[0]


def digests() -> str:
    """What all rules make of the same updates."""
    hasher = hashlib.sha256()
    for dtype in KINDS:
        updates = random_updates(dtype, 12, BLOCK + 700, 3)
        for rule in EVERY:
            if rule in OF_FLOATS_ALONE and dtype not in FLOATS:
                continue
            hasher.update(combined(rule, updates, base=base_of(dtype, BLOCK + 700)).tobytes())
    return hasher.hexdigest()


def test_every_rule_of_the_contract_has_a_module() -> None:
    assert set(RULES) == set(CONTRACT) == set(NUMBERS)


@every_rule
@pytest.mark.parametrize("dtype", KINDS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(9)))
def test_no_order_changes_a_bit_of_a_rule_that_sorts_or_adds_exactly(
    rule: "pb.Rule", dtype: str, seed: int, order: list[int]
) -> None:
    if rule in ORDERED or (rule in WITHOUT_INTEGERS and dtype not in FLOATS):
        return
    updates, base = random_updates(dtype, 9, 20, seed), base_of(dtype, 20)
    again = [updates[i] for i in order]
    expected = combined(rule, updates, base=base).tobytes()
    assert combined(rule, again, base=base).tobytes() == expected


def test_a_processor_without_wide_vectors_and_other_thread_counts_give_the_same_bits() -> None:
    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.unit.aggregator_node.aggregation.test_rules import digests\n"
        "print(digests())"
    )
    plain = os.environ | {
        "OMP_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "3",
        "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512_SKX AVX2 FMA3 X86_V3 X86_V4",
    }
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=plain,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.strip() == digests(), ran.stderr


@every_rule
def test_a_result_can_be_had_again_and_nothing_of_it_is_left_for_the_next_round(
    rule: "pb.Rule",
) -> None:
    schema = schema_of("F32", 50)
    working = at_work(rule, schema)
    base = base_of("F32", 50).tobytes()
    results = []
    for seed in (1, 1, 2):
        working.begin(lambda _: None, base)
        for update in random_updates("F32", 9, 50, seed):
            working.add_blocks(reading(schema, update.tobytes()), 1)
        results += [b"".join(map(bytes, working.result_blocks())) for _ in range(2)]
        working.reset()
    assert len(set(results[:4])) == 1
    assert results[4] == results[5] != results[0]
    with pytest.raises(WrongState):
        list(working.result_blocks())


@pytest.mark.parametrize("rule", COLLECTING, ids=name)
def test_a_rule_has_no_result_of_which_the_contract_says_that_it_averages_over_too_few(
    rule: "pb.Rule",
) -> None:
    aggregation = Aggregation(rule=rule, rule_numbers=NUMBERS[rule])
    for floor in (2, 3, 5):
        for owners in range(1, 13):
            updates = random_updates("F32", owners, 4, 1)
            is_allowed = aggregation.averages_over(owners, floor) >= floor
            if is_allowed:
                assert len(combined(rule, updates, base=updates[0], floor=floor)) == 4
            else:
                with pytest.raises(WrongState, match=f"the floor is {floor}"):
                    combined(rule, updates, base=updates[0], floor=floor)


ATTACKS = {
    "sign flip": lambda honest: -3 * honest,
    "ten times": lambda honest: 10 * honest,
    "far away": lambda honest: honest + np.float32(1e6),
}


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_a_poisoned_third_moves_the_mean_and_no_robust_rule(attack: str) -> None:
    """Nine owners, three of whom send what they like; the truth is the mean of the honest ones."""
    honest = [update * np.float32(0.1) for update in random_updates("F32", 9, 400, 8)]
    base = np.zeros(400, np.float32)
    truth = np.mean(honest, axis=0)
    poisoned = [ATTACKS[attack](update) for update in honest[:3]] + honest[3:]
    # Honest updates have a norm of 2.1; those that clip bound what a third can do by a third of it.
    numbers: Mapping[pb.Rule, Mapping[str, float]] = NUMBERS | {
        pb.RULE_NORM_BOUNDED_MEAN: {"norm": 2.5},
        pb.RULE_CENTRED_CLIPPING: {"norm": 2.5, "iterations": 1},
        pb.RULE_GEOMETRIC_MEDIAN: {"iterations": 40, "smoothing": 1e-6},
    }
    size = float(np.linalg.norm(truth))
    spread = max(float(np.linalg.norm(update - truth)) for update in honest)
    moved = {
        rule: float(np.linalg.norm(combined(rule, poisoned, numbers[rule], base) - truth))
        for rule in EVERY
        if rule not in {pb.RULE_SUM, pb.RULE_BUCKETED_MEDIAN}
    }
    assert moved[pb.RULE_MEAN] > size
    for rule in (pb.RULE_NORM_BOUNDED_MEAN, pb.RULE_CENTRED_CLIPPING):
        assert moved[rule] < (2.5 + size) / 3 + spread
    for rule in (pb.RULE_TRIMMED_MEAN, pb.RULE_MULTI_KRUM, pb.RULE_GEOMETRIC_MEDIAN):
        assert moved[rule] < spread


def test_each_iteration_halves_how_far_a_third_that_is_far_away_moves_the_geometric_median() -> (
    None
):
    updates = [np.array([0.0, number], np.float64) for number in range(6)]
    updates += [np.array([1e6, number], np.float64) for number in range(3)]
    moved = [
        combined(
            pb.RULE_GEOMETRIC_MEDIAN, updates, {"iterations": number, "smoothing": 1e-6}
        ).tolist()[0]
        for number in (4, 8, 12)
    ]
    assert [round(np.log2(a / b)) for a, b in pairwise(moved)] == [4, 4]


def test_poison_in_fewer_than_half_of_the_buckets_leaves_the_median_among_the_honest_means() -> (
    None
):
    honest = random_updates("F64", 10, 200, 9)
    poisoned = [honest[0] + 1e6, honest[1] - 1e6, honest[2] * -10, honest[3] + 7, *honest[4:]]
    clean = np.array(honest[4:]).reshape(3, 2, -1).mean(axis=1)
    result = combined(pb.RULE_BUCKETED_MEDIAN, poisoned)
    assert np.all(result >= clean.min(axis=0) - 1e-12)
    assert np.all(result <= clean.max(axis=0) + 1e-12)


@pytest.mark.parametrize("rule", COLLECTING, ids=name)
@pytest.mark.parametrize("owners", [9, 64])
def test_a_collecting_rule_takes_no_memory_in_proportion_to_the_model(
    rule: "pb.Rule", owners: int
) -> None:
    count = 1 << 18
    schema = schema_of("F32", count)
    update = random_updates("F32", 1, count, 1)[0].tobytes()
    tracemalloc.start()
    try:
        working = RULES[rule](schema, Aggregation(rule=rule, rule_numbers=NUMBERS[rule]), 2)
        working.begin(lambda _: None, update)
        for _ in range(owners):
            working.add_blocks(reading(schema, update), 1)
        for piece in working.result_blocks():
            assert piece.nbytes <= 4 * 4 * BLOCK
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert RULES[rule].memory_bytes(schema) == 0
    assert peak < 12 << 20


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), norm=st.sampled_from([0.01, 1.0, 5.0, 1e9]))
def test_a_norm_bounded_mean_is_that_of_the_shortened_updates(
    dtype: str, seed: int, norm: float
) -> None:
    updates, base = random_updates(dtype, 5, 30, seed), base_of(dtype, 30)
    start = base.astype(np.float64)
    shortened = []
    for update in updates:
        apart = update.astype(np.float64) - start
        shortened.append(start + apart * min(1, norm / float(np.linalg.norm(apart))))
    result = combined(pb.RULE_NORM_BOUNDED_MEAN, updates, {"norm": norm}, base)
    last_place = 2.0 ** (1 - SIGNIFICANT_BITS[dtype])
    assert np.allclose(
        result.astype(np.float64), np.mean(shortened, axis=0), rtol=0, atol=8 * last_place
    )


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_a_norm_that_no_update_exceeds_changes_no_bit_of_the_mean(dtype: str) -> None:
    updates, base = random_updates(dtype, 5, BLOCK + 30, 1), base_of(dtype, BLOCK + 30)
    expected = combined(pb.RULE_MEAN, updates).tobytes()
    result = combined(pb.RULE_NORM_BOUNDED_MEAN, updates, {"norm": 1e9}, base)
    assert result.tobytes() == expected


def test_no_single_update_moves_the_bounded_mean_by_more_than_its_part_of_the_norm() -> None:
    base = base_of("F32", 1000)
    for size in (1.0, 1e3, 1e9):
        updates = [base] * 3 + [base + np.float32(size)]
        result = combined(pb.RULE_NORM_BOUNDED_MEAN, updates, {"norm": 0.5}, base)
        moved = float(np.linalg.norm(result.astype(np.float64) - base))
        assert moved <= 0.5 / 4 + float(np.linalg.norm(base)) * 2.0**-23


def test_the_norm_is_over_all_floating_point_tensors_and_no_integer() -> None:
    schema = Schema.of(
        [TensorSpec("f", "F32", (1,)), TensorSpec("h", "F16", (1,)), TensorSpec("n", "I32", (1,))]
    )
    values = {"F32": 3.0, "F16": 4.0, "I32": 10**6}
    update = b"".join(
        np.array([values[t.dtype]], DTYPES[t.dtype]).tobytes() for t in schema.tensors
    )
    payload = released(
        pb.RULE_NORM_BOUNDED_MEAN,
        schema,
        [reading(schema, update)],
        {"norm": 1.0},
        bytes(schema.total_bytes),
    )
    expected = {"F32": 3 / 5, "F16": 4 / 5, "I32": 10**6}
    assert payload == b"".join(
        np.array([expected[t.dtype]], DTYPES[t.dtype]).tobytes() for t in schema.tensors
    )


def test_deltas_are_shortened_without_their_base() -> None:
    base = np.full(4, 100, np.float32)
    deltas = np.array([[3.0, 4.0, 0, 0], [0, 0, 0.25, 0]])
    payload = released(
        pb.RULE_NORM_BOUNDED_MEAN,
        schema_of("F32", 4),
        [reading_deltas(row) for row in deltas],
        {"norm": 2.5},
        base.tobytes(),
        are_deltas=True,
    )
    assert np.frombuffer(payload, np.float32).tolist() == [100.75, 101, 100.125, 100]


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_a_sum_is_the_exact_one_rounded_once(dtype: str) -> None:
    updates = random_updates(dtype, 7, 100, 1)
    result = combined(pb.RULE_SUM, updates)
    for place in range(100):
        exact = sum(Fraction(float(update[place])) for update in updates)
        nearest = [result[place], np.nextafter(result[place], result.dtype.type(np.inf))]
        nearest.append(np.nextafter(result[place], result.dtype.type(-np.inf)))
        errors = [abs(Fraction(float(value)) - exact) for value in nearest]
        assert errors[0] == min(errors)


def test_a_sum_beyond_the_range_is_not_released() -> None:
    with pytest.raises(LimitExceeded, match="aggregate of tensor t exceeds the range of F16"):
        combined(pb.RULE_SUM, [np.array([4e4], np.float16)] * 2)


@every_rule
def test_a_released_zero_has_no_sign(rule: "pb.Rule") -> None:
    """Noise of 1e-14 is less than the smallest number of the type, on either side of zero."""
    updates = [np.full(30, -0.0, np.float16) for _ in range(9)]
    numbers = {key: 1e-12 if key == "norm" else value for key, value in NUMBERS[rule].items()}
    result = combined(rule, updates, numbers, base=np.full(30, -0.0, np.float16))
    assert result.tobytes() == bytes(60)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), colluders=st.integers(1, 3), size=st.sampled_from([1, 1e6]))
def test_as_many_colluders_as_are_trimmed_move_no_element_beyond_the_values_of_the_others(
    seed: int, colluders: int, size: float
) -> None:
    honest = random_updates("F64", 10 - colluders, 30, seed)
    false = size * np.random.default_rng(seed).normal(0, 1, (colluders, 30))
    result = combined(pb.RULE_TRIMMED_MEAN, [*honest, *false], {"trim": 0.3})
    assert np.all(np.min(honest, axis=0) <= result)
    assert np.all(result <= np.max(honest, axis=0))


@pytest.mark.parametrize("rule", [pb.RULE_NORM_BOUNDED_MEAN, pb.RULE_CENTRED_CLIPPING], ids=name)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    colluders=st.integers(1, 5),
    size=st.sampled_from([0.1, 1, 1e6]),
)
def test_colluders_move_a_clipped_mean_by_their_part_of_the_norm_at_most(
    rule: "pb.Rule", seed: int, colluders: int, size: float
) -> None:
    """From where it would be had they sent the base: as far off as they like, and all in one direction."""
    base, norm = base_of("F64", 30), 0.7
    honest = random_updates("F64", 12 - colluders, 30, seed)
    false = base + size * np.random.default_rng(seed).normal(0, 1, 30)
    numbers = {"norm": norm} | ({} if rule == pb.RULE_NORM_BOUNDED_MEAN else {"iterations": 1})
    silent, moved = (
        combined(rule, [*honest, *[sent] * colluders], numbers, base) for sent in (base, false)
    )
    apart = float(np.linalg.norm(moved - silent))
    assert apart <= colluders / 12 * norm + 1e-6
