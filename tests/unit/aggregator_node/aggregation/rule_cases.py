"""Rules at work on small updates: what their tests and their references share."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregator_node.aggregation.private_mean import PrivateMean
from aggregator_node.aggregation.rule import ReadBlock, Rule
from aggregator_node.aggregation.rules import RULES
from cairn.model.schema import DTYPES, Schema, TensorSpec
from cairn.model.validation import SIGNIFICANT_BITS, runs_of
from cairn.protocol.aggregation import Aggregation
from cairn.runtime.buffer import Buffer
from cairn.v1 import round_pb2 as pb

NUMBERS: dict["pb.Rule", Mapping[str, float]] = {
    pb.RULE_MEAN: {},
    pb.RULE_SUM: {},
    pb.RULE_NORM_BOUNDED_MEAN: {"norm": 1.0},
    pb.RULE_TRIMMED_MEAN: {"trim": 0.34},
    pb.RULE_BUCKETED_MEDIAN: {"bucket": 2},
    pb.RULE_MULTI_KRUM: {"byzantine": 3, "select": 5},
    pb.RULE_GEOMETRIC_MEDIAN: {"iterations": 8, "smoothing": 1e-6},
    pb.RULE_CENTRED_CLIPPING: {"norm": 1.0, "iterations": 3},
    pb.RULE_PRIVATE_MEAN: {"norm": 1.0, "noise": 0.01, "epsilon": 1.0, "delta": 1e-5},
}
# What depends on the order in which a rule is given the updates, which is that of the owners' names or the drawn one.
ORDERED = {pb.RULE_BUCKETED_MEDIAN, pb.RULE_GEOMETRIC_MEDIAN, pb.RULE_CENTRED_CLIPPING}
# Gradients have no integers, and no noise is added to any.
OF_FLOATS_ALONE = {pb.RULE_SUM, pb.RULE_PRIVATE_MEAN}
KINDS = ("F16", "BF16", "F32", "F64", "I8", "I32", "I64", "BOOL")


def at_work(
    rule: "pb.Rule", schema: Schema, numbers: Mapping[str, float] | None = None, floor: int = 2
) -> Rule:
    """The rule with the numbers of its cases, unless given. A rule that adds noise draws the same every time."""
    aggregation = Aggregation(rule=rule, rule_numbers=NUMBERS[rule] if numbers is None else numbers)
    if rule == pb.RULE_PRIVATE_MEAN:
        return PrivateMean(schema, aggregation, floor, new_key=lambda: bytes(32))
    return RULES[rule](schema, aggregation, floor)


def schema_of(dtype: str, count: int) -> Schema:
    return Schema.of([TensorSpec("t", dtype, (count,))])


def reading(schema: Schema, payload: Buffer) -> ReadBlock:
    runs = list(runs_of(schema))

    def read(number: int, block: slice) -> tuple[NDArray[Any], int]:
        run = runs[number]
        return run.values(payload)[block], SIGNIFICANT_BITS.get(run.dtype, 0)

    return read


def reading_deltas(deltas: NDArray[np.float64], bits: int = 24) -> ReadBlock:
    return lambda _, block: (deltas[block], bits)


def released(
    rule: "pb.Rule",
    schema: Schema,
    reads: Sequence[ReadBlock],
    numbers: Mapping[str, float] | None = None,
    base: Buffer | None = None,
    floor: int = 2,
    *,
    are_deltas: bool = False,
    weights: Sequence[int] | None = None,
) -> bytes:
    working = at_work(rule, schema, numbers, floor)
    working.begin(lambda _: None, base, are_deltas=are_deltas)
    for read, weight in zip(reads, weights or [1] * len(reads), strict=True):
        working.add_blocks(read, weight)
    return b"".join(bytes(piece) for piece in working.result_blocks())


def combined(
    rule: "pb.Rule",
    updates: Sequence[NDArray[Any]],
    numbers: Mapping[str, float] | None = None,
    base: NDArray[Any] | None = None,
    floor: int = 2,
) -> NDArray[Any]:
    """The result for updates of one tensor, whose type and length the first has."""
    dtype = next(name for name, kind in DTYPES.items() if kind == updates[0].dtype)
    schema = schema_of(dtype, len(updates[0]))
    payload = released(
        rule,
        schema,
        [reading(schema, update.tobytes()) for update in updates],
        numbers,
        None if base is None else base.tobytes(),
        floor,
    )
    return np.frombuffer(payload, DTYPES[dtype])


def random_updates(dtype: str, owners: int, count: int, seed: int) -> list[NDArray[Any]]:
    """Updates that lie around one point, of the sizes of trained weights."""
    generator = np.random.default_rng(seed)
    centre = generator.normal(0, 1, count)
    if dtype in SIGNIFICANT_BITS:
        return [
            (centre + generator.normal(0, 0.3, count)).astype(DTYPES[dtype]) for _ in range(owners)
        ]
    high = 2 if dtype == "BOOL" else 100
    return [generator.integers(0, high, count).astype(DTYPES[dtype]) for _ in range(owners)]


cases = st.tuples(st.integers(9, 13), st.integers(1, 40), st.integers(0, 2**32 - 1))
