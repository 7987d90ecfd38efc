"""The private mean: how far one update can move its sum, what its noise is, and what is left of either."""

import logging
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]  # its types are a package of their own

from aggregator_node.aggregation import private_mean
from aggregator_node.aggregation.discrete_gaussian import DiscreteGaussian
from aggregator_node.aggregation.exact_sum import BLOCK
from aggregator_node.aggregation.key_stream import KeyStream
from aggregator_node.aggregation.private_mean import GRID, PrivateMean
from cairn.errors import LimitExceeded, UpdateRefused, WrongState
from cairn.model.schema import DTYPES, FLOATS, Schema, TensorSpec
from cairn.model.validation import SIGNIFICANT_BITS
from cairn.protocol.aggregation import Aggregation
from cairn.runtime.buffer import Buffer
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.aggregation.rule_cases import (
    NUMBERS,
    at_work,
    combined,
    random_updates,
    reading,
    reading_deltas,
    released,
    schema_of,
)

RULE = pb.RULE_PRIVATE_MEAN
KEY = bytes(32)  # which `rule_cases` draws from
QUIET = {**NUMBERS[RULE], "noise": 0.01}

every_float = pytest.mark.parametrize("dtype", sorted(FLOATS))


def sums_of(
    updates: Sequence[NDArray[Any]], norm: float, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """The exact sum on the grid: what the noise is added to."""
    sums: list[int] = []

    class Silent(DiscreteGaussian):
        def add_to(self, values: NDArray[np.int64]) -> None:
            sums.extend(values.tolist())

    with monkeypatch.context() as patched:
        patched.setattr(private_mean, "DiscreteGaussian", Silent)
        base = np.zeros_like(updates[0])
        combined(RULE, updates, {**QUIET, "norm": norm}, base)
    return sums


def noise_of(count: int, noise: float = 0.01, key: bytes = KEY) -> NDArray[np.float64]:
    """What the rule adds, in norms: a draw of the sampler for each element, at a scale that is rounded up."""
    values = np.zeros(count, np.int64)
    sigma = -int(-Fraction(noise) * GRID // 1)
    DiscreteGaussian(Fraction(sigma), KeyStream(key)).add_to(values)
    return values / GRID


@every_float
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), norm=st.sampled_from([0.01, 1.0, 5.0, 1e4]))
def test_a_private_mean_is_that_of_the_shortened_updates_and_the_noise(
    dtype: str, seed: int, norm: float
) -> None:
    updates = random_updates(dtype, 5, 30, seed)
    base = random_updates(dtype, 1, 30, 99)[0]
    start = base.astype(np.float64)
    shortened = []
    for update in updates:
        apart = update.astype(np.float64) - start
        shortened.append(apart * (norm / max(norm, float(np.linalg.norm(apart)))))
    expected = start + (np.sum(shortened, axis=0) + norm * noise_of(30)) / 5
    result = combined(RULE, updates, {**QUIET, "norm": norm}, base).astype(np.float64)
    rounding = np.abs(expected) * 2.0 ** -SIGNIFICANT_BITS[dtype]
    assert np.all(np.abs(result - expected) <= 1.01 * rounding + norm * 30 / GRID)


@every_float
def test_gradients_are_their_own_distance(dtype: str) -> None:
    updates = random_updates(dtype, 5, 30, 4)
    expected = np.zeros(30)
    for update in updates:
        apart = update.astype(np.float64)
        expected += apart * (2 / max(2, float(np.linalg.norm(apart))))
    result = combined(RULE, updates, {**QUIET, "norm": 2.0})
    expected = (expected + 2 * noise_of(30)) / 5
    assert np.allclose(
        result.astype(np.float64), expected, rtol=2.0 ** -SIGNIFICANT_BITS[dtype], atol=1e-7
    )


def test_deltas_are_shortened_and_added_to_the_base_and_are_rounded_to_no_fewer_bits() -> None:
    """Other rules round a mean of deltas to bfloat16, which noise makes needless."""
    base = np.full(4, 100, np.float32)
    deltas = np.array([[3.0, 4.0, 0, 0], [0, 0, 0.25, 0]])
    payload = released(
        RULE,
        schema_of("F32", 4),
        [reading_deltas(row) for row in deltas],
        {**QUIET, "norm": 2.5},
        base.tobytes(),
        are_deltas=True,
    )
    expected = np.array([0.75, 1, 0.125, 0]) + 2.5 * noise_of(4) / 2
    assert np.frombuffer(payload, np.float32) == pytest.approx(base + expected, abs=4e-6)


def test_the_norm_is_over_all_tensors_together() -> None:
    schema = Schema.of([TensorSpec("f", "F32", (1,)), TensorSpec("h", "F16", (1,))])
    update = b"".join(
        np.array([{"F32": 3.0, "F16": 4.0}[t.dtype]], DTYPES[t.dtype]).tobytes()
        for t in schema.tensors
    )
    payload = released(RULE, schema, [reading(schema, update)], QUIET, bytes(6))
    expected = {"F32": 3 / 5, "F16": 4 / 5}
    begin = 0
    for tensor, noise in zip(schema.tensors, noise_of(2), strict=True):
        kind = DTYPES[tensor.dtype]
        value = np.frombuffer(payload, kind, 1, begin)[0]
        assert float(value) == pytest.approx(expected[tensor.dtype] + noise, abs=5e-4)
        begin += kind.itemsize


def all_rounded_up(at_least: int) -> NDArray[np.float64]:
    """Equal elements, so many that each is a little more than a half above a whole number on the grid."""
    counts = range(at_least, 2 * at_least)
    return np.ones(next(n for n in counts if 0.5 < (GRID - 1) / n**0.5 % 1 < 0.52))


def worst_cases() -> Iterator[tuple[str, NDArray[Any], float]]:
    """Updates whose elements are rounded away from zero, or whose norms are hard to come by."""
    for count in (100, 1000, BLOCK + 3, 200_000):
        update = all_rounded_up(count)
        norm = float(np.linalg.norm(update))
        yield f"rounded up {count}", update, norm
        yield f"rounded up {count}, a little longer", update * (1 + 1e-12), norm
        yield f"rounded up {count}, much longer", update * 1e6, norm
    yield "an element of the norm itself", np.array([1.0, 0.0]), 1.0
    yield "far", np.array([1e300, -1e300, 1e300]), 1.0
    yield "as far as can be", np.array([np.finfo(np.float64).max] * 2), 1e-12
    yield "small beside the norm", np.full(1000, 1e-30), 1e30
    yield "subnormal", np.full(5, 5e-324), 1e-12
    yield "all in one element", np.eye(1, 1000)[0] * 3.0, 3.0
    yield "signs", np.tile([0.5, -0.5], 5000), 50.0
    yield "F32", np.full(90_000, 1 / 300, np.float32), 1.0
    yield "BF16", np.full(65_536, 1 / 256).astype(DTYPES["BF16"]), 1.0
    yield "F16", np.full(4096, 60_000, np.float16), 1e4


WORST = list(worst_cases())


@pytest.mark.parametrize(
    ("update", "norm"), [each[1:] for each in WORST], ids=[each[0] for each in WORST]
)
def test_no_update_moves_the_sum_by_more_than_the_norm_on_the_grid(
    monkeypatch: pytest.MonkeyPatch, update: NDArray[Any], norm: float
) -> None:
    """By the arithmetic of Python's integers."""
    square = sum(unit * unit for unit in sums_of([update], norm, monkeypatch))
    assert square <= GRID**2
    size = float(np.linalg.norm(np.clip(update.astype(np.float64), -1e150, 1e150)))
    assert square**0.5 >= min(1, size / norm) * GRID * (1 - 1e-9) - len(update) ** 0.5


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 3000),
    spread=st.integers(0, 60),
    over=st.sampled_from([0.0, 1e-16, 1e-12, 1e-6, 1.0, 1e9]),
)
def test_whatever_an_update_is_it_is_within_the_norm_on_the_grid(
    seed: int, count: int, spread: int, over: float
) -> None:
    generator = np.random.default_rng(seed)
    update = generator.normal(0, 1, count) * 2.0 ** generator.integers(-spread, spread + 1, count)
    norm = float(np.linalg.norm(update)) / (1 + over)
    with pytest.MonkeyPatch.context() as patch:
        sums = sums_of([update], min(1e30, max(1e-12, norm)), patch)
    assert sum(unit * unit for unit in sums) <= GRID**2


def test_an_update_that_rounding_made_too_long_leaves_nothing_of_its_first_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such an update is taken back and shortened: beside others, it counts as it does alone."""
    update = all_rounded_up(1000)
    norm = float(np.linalg.norm(update))
    other = np.linspace(-1, 1, len(update))
    together = sums_of([other, update, other], norm, monkeypatch)
    alone = [sums_of([each], norm, monkeypatch) for each in (update, other)]
    first_try = np.rint(update * ((GRID - 1) / norm)).tolist()
    assert sum(int(unit) ** 2 for unit in first_try) > GRID**2
    assert together == [a + 2 * b for a, b in zip(*alone, strict=True)]


def test_the_most_owners_at_the_full_norm_and_the_largest_noise_stay_within_64_bits() -> None:
    numbers = {**QUIET, "norm": 1.0, "noise": 1e4}
    update = np.array([1.0, 0.0])
    schema = schema_of("F64", 2)
    reads = [reading(schema, update.tobytes())] * 1024
    payload = released(RULE, schema, reads, numbers, bytes(16))
    expected = (np.array([1024, 0]) + noise_of(2, 1e4)) / 1024
    assert np.frombuffer(payload) == pytest.approx(expected, abs=1.1 / GRID)


@pytest.mark.parametrize("owners", [2, 20])
def test_the_noise_on_the_sum_has_the_stated_scale_however_many_owners_there_are(
    owners: int,
) -> None:
    count, numbers = 50_000, {**QUIET, "norm": 3.0, "noise": 0.7}
    update = np.full(count, 1e-3)
    result = combined(RULE, [update] * owners, numbers, np.zeros(count))
    noise = (result - update) * owners / (3.0 * 0.7)
    assert stats.kstest(noise, "norm").pvalue > 0.01
    assert float(np.std(noise)) == pytest.approx(1, rel=0.01)


def test_each_release_has_a_key_of_its_own() -> None:
    schema, update = schema_of("F32", 100), np.zeros(100, np.float32).tobytes()
    working = PrivateMean(schema, Aggregation(rule=RULE, rule_numbers=QUIET), 2)
    released = set()
    for _ in range(3):
        released.add(result_of(working, schema, update))
        working.reset()
    assert len(released) == 3


def result_of(working: PrivateMean, schema: Schema, update: Buffer) -> bytes:
    working.begin(lambda _: None, bytes(schema.total_bytes))
    working.add_blocks(reading(schema, update), 1)
    return b"".join(map(bytes, working.result_blocks()))


def test_after_a_reset_neither_updates_nor_noise_are_in_its_memory() -> None:
    schema = schema_of("F32", BLOCK + 9)
    working = PrivateMean(schema, Aggregation(rule=RULE, rule_numbers=QUIET), 2)
    update = random_updates("F32", 1, BLOCK + 9, 5)[0]
    result_of(working, schema, update.tobytes())
    kept = [value for value in vars(working).values() if isinstance(value, np.ndarray)]
    assert any(array.any() for array in kept)
    working.reset()
    assert not any(array.any() for array in kept)
    with pytest.raises(WrongState, match="no mean of no update"):
        list(working.result_blocks())


def test_updates_that_count_unlike_are_refused_before_anything_is_added() -> None:
    schema = schema_of("F32", 3)
    working = at_work(RULE, schema)
    working.begin(lambda _: None, bytes(12))
    with pytest.raises(UpdateRefused, match="counts 1"):
        working.add_blocks(reading(schema, bytes(12)), 2)
    with pytest.raises(WrongState):
        list(working.result_blocks())


def test_a_result_beyond_the_range_of_its_type_is_not_released() -> None:
    base = np.full(50, 65_504, np.float16)
    with pytest.raises(LimitExceeded, match="aggregate of tensor t exceeds the range of F16"):
        combined(RULE, [base, base], {**QUIET, "norm": 1e4, "noise": 1.0}, base)


def test_its_memory_is_eight_bytes_an_element_and_does_not_grow_with_the_owners() -> None:
    schema = schema_of("F32", 1 << 18)
    assert PrivateMean.memory_bytes(schema) == 8 << 18
    assert [PrivateMean.held_updates(owners) for owners in (2, 1000)] == [0, 0]


def test_two_noises_differ_by_the_noise_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Of the same updates under two keys: what is between the releases is between the draws."""
    schema = schema_of("F64", 64)
    update = random_updates("F64", 1, 64, 6)[0] / 20
    keys = [bytes(32), bytes(range(32))]
    results = []
    with caplog.at_level(logging.DEBUG):
        for key in keys:
            aggregation = Aggregation(rule=RULE, rule_numbers=QUIET)
            working = PrivateMean(schema, aggregation, 2, new_key=partial(bytes, key))
            results.append(np.frombuffer(result_of(working, schema, update.tobytes())))
    noises = [noise_of(64, key=key) for key in keys]
    for (a, b), (x, y) in zip(pairwise(results), pairwise(noises), strict=True):
        assert a - b == pytest.approx(x - y, abs=1e-15)
    assert not caplog.records
