"""How the stream of a rule's result becomes that of a release and of a state."""

import math
import struct
from itertools import pairwise

import numpy as np
import pytest

from aggregator_node.aggregation.exact_sum import BLOCK
from aggregator_node.optimizers.step import step_of
from cairn.errors import LimitExceeded
from cairn.model.schema import MAX_NAME_BYTES, MAX_TENSORS, Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.optimizers.steps import (
    Steps,
    aggregation_of,
    payload_of,
    pieces_of,
    schema_of,
    step_for,
)

ADAM = aggregation_of(pb.OPTIMIZER_ADAM, are_gradients=False, lr=0.01)
EVERY_TYPE = ("F64", "F32", "BF16", "F16", "I64", "I32", "U8", "BOOL")


def random_payload(schema: Schema, seed: int) -> bytes:
    source = np.random.default_rng(seed)
    values = {
        tensor.name: source.standard_normal(tensor.shape)
        if tensor.dtype.endswith(("F64", "F32", "F16"))
        else source.integers(0, 2, tensor.shape)
        for tensor in schema.tensors
    }
    return payload_of(schema, values)


def test_without_an_optimizer_there_is_no_step() -> None:
    assert step_of(schema_of(3, "F32"), Aggregation()) is None


@pytest.mark.parametrize("count", [1, 777, 2 * BLOCK + 5])
def test_bits_do_not_depend_on_how_the_result_is_cut_into_pieces(count: int) -> None:
    schema = schema_of(count, *EVERY_TYPE)
    source = np.random.default_rng(1)
    whole, cut = (Steps(schema, ADAM, random_payload(schema, 0)) for _ in range(2))
    for number in (1, 2, 3):
        result = random_payload(schema, number)
        cuts = [
            begin + 8 * int(source.integers(0, (end - begin) // 8 + 1))
            for begin, end in pairwise(schema.offsets)
            for _ in range(5)
        ]
        whole.go(result)
        cut.go(result, [position for position in cuts if position < schema.total_bytes])
    assert (whole.model, whole.state) == (cut.model, cut.state)
    state_schema = whole.step.state_schema
    assert state_schema is not None
    assert whole.state is not None
    assert len(whole.state) == state_schema.total_bytes


def test_a_piece_of_the_release_lasts_until_the_next_but_one_is_asked_for() -> None:
    schema = schema_of(5 * BLOCK, "F64", "F32", "I32")
    base, result = random_payload(schema, 0), random_payload(schema, 1)
    expected = Steps(schema, ADAM, base)
    expected.go(result)
    step, late, before = step_for(schema, ADAM), b"", memoryview(b"")
    for piece in step.release_blocks(base, pieces_of(schema, result)):
        late += bytes(before)
        before = piece
    assert late + bytes(before) == expected.model


def test_integers_and_bools_are_released_as_the_rule_gives_them() -> None:
    schema = schema_of(4, "F32", "I64", "U8", "BOOL")
    before = {"f32": [1.0] * 4, "i64": [7] * 4, "u8": [8] * 4, "bool": [True] * 4}
    after = {"f32": [2.0] * 4, "i64": [-3, 0, 2**62, 5], "u8": [0, 1, 2, 255], "bool": [0, 1, 0, 1]}
    steps = Steps(schema, ADAM, payload_of(schema, before))
    steps.go(payload_of(schema, after))
    assert steps.values("I64").tolist() == after["i64"]
    assert steps.values("U8").tolist() == after["u8"]
    assert steps.values("BOOL").tolist() == after["bool"]


def test_a_released_zero_has_no_sign() -> None:
    schema = schema_of(2, "F32")
    steps = Steps(
        schema, aggregation_of(pb.OPTIMIZER_SGD, lr=1), payload_of(schema, {"f32": [-0.0, 1]})
    )
    steps.go(payload_of(schema, {"f32": [0.0, 1]}))
    assert steps.model == bytes(8)


def test_a_release_beyond_the_range_of_its_type_is_refused_by_name() -> None:
    schema = Schema.of([TensorSpec("first", "F16", (3,)), TensorSpec("second", "F16", (3,))])
    aggregation = aggregation_of(pb.OPTIMIZER_SGD, lr=1e6)
    steps = Steps(schema, aggregation, bytes(12))
    with pytest.raises(LimitExceeded, match=r"the release exceeds .* tensor second"):
        steps.go(payload_of(schema, {"first": [0] * 3, "second": [0, 1, 0]}))


def test_a_state_beyond_the_range_of_its_type_is_refused_by_name() -> None:
    """Else the element would not move ever again: whatever is divided by an infinity is zero."""
    schema = schema_of(2, "F32")
    steps = Steps(schema, aggregation_of(pb.OPTIMIZER_ADAGRAD, lr=1), bytes(8))
    with pytest.raises(LimitExceeded, match=r"state exceeds .* tensor f32"):
        steps.go(payload_of(schema, {"f32": [0, 1e20]}))


def test_the_state_of_the_largest_schema_with_the_longest_names_is_a_model() -> None:
    names = (f"{number}".rjust(MAX_NAME_BYTES, "n") for number in range(MAX_TENSORS))
    schema = Schema.of(TensorSpec(name, "F32", (2,)) for name in names)
    state_schema = step_for(schema, ADAM).state_schema
    assert state_schema is not None
    assert state_schema.total_bytes == 8 + 2 * schema.total_bytes


def test_the_state_of_a_model_without_floats_is_the_number_of_steps() -> None:
    steps = Steps(schema_of(2, "I32"), ADAM, bytes(8))
    for number in (1, 2):
        steps.go(bytes(8))
        assert steps.state == number.to_bytes(8, "little")


def test_after_a_million_steps_a_step_has_no_bias_to_correct() -> None:
    schema, lr = schema_of(1, "F64"), 0.25
    aggregation = aggregation_of(pb.OPTIMIZER_ADAM, lr=lr, epsilon=1e-12)
    steps = Steps(schema, aggregation, bytes(8))
    steps.state = (10**6).to_bytes(8, "little") + struct.pack("<2d", 3.0, 9.0)
    steps.go(struct.pack("<d", 3.0))
    assert math.isclose(steps.values("F64")[0], -lr, rel_tol=1e-9)
