"""A job's steps, one after the other, in memory; and payloads of the values that a test thinks of."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator_node.optimizers.step import OptimizerStep, step_of
from cairn.model.schema import DTYPES, Schema, TensorSpec
from cairn.protocol.aggregation import OPTIMIZER_NUMBERS, Aggregation, numbers_of
from cairn.v1 import round_pb2 as pb


def aggregation_of(
    optimizer: "pb.Optimizer", *, are_gradients: bool = True, **numbers: float
) -> Aggregation:
    """An aggregation with this optimizer, whose other numbers are those of a job's file that does not say."""
    return Aggregation(
        content=pb.CONTENT_GRADIENTS if are_gradients else pb.CONTENT_WEIGHTS,
        optimizer=optimizer,
        optimizer_numbers=numbers_of(OPTIMIZER_NUMBERS[optimizer], numbers, "it"),
    )


def schema_of(count: int, *dtypes: str) -> Schema:
    return Schema.of(TensorSpec(dtype.lower(), dtype, (count,)) for dtype in dtypes)


def payload_of(schema: Schema, values: dict[str, Any]) -> bytes:
    return b"".join(
        np.asarray(values[tensor.name], DTYPES[tensor.dtype]).tobytes() for tensor in schema.tensors
    )


class Steps:
    """The optimizer of a job, its model and its state."""

    def __init__(self, schema: Schema, aggregation: Aggregation, model: bytes) -> None:
        step = step_of(schema, aggregation)
        assert step is not None
        self.schema, self.step, self.model = schema, step, model
        self.state: bytes | None = None

    def go(self, result: bytes, cuts: Sequence[int] = ()) -> None:
        """Make a step along this result, which comes in pieces: one of each type, and cut at these bytes."""
        written: list[bytes] = []
        pieces = self.step.release_blocks(
            self.model,
            pieces_of(self.schema, result, cuts),
            self.state,
            lambda piece: written.append(bytes(piece)),
        )
        self.model = b"".join(bytes(piece) for piece in pieces)
        self.state = b"".join(written) if self.step.state_schema is not None else None

    def values(self, dtype: str) -> NDArray[Any]:
        """The model's only tensor of this type."""
        place = [tensor.dtype for tensor in self.schema.tensors].index(dtype)
        begin, end = self.schema.offsets[place : place + 2]
        return np.frombuffer(self.model[begin:end], DTYPES[dtype])


def pieces_of(schema: Schema, result: bytes, cuts: Iterable[int] = ()) -> Iterator[memoryview]:
    """Each piece in memory that is overwritten as soon as a rule may do so."""
    edges = sorted({*schema.offsets, *cuts})
    before: list[bytearray] = []
    for begin, end in pairwise(edges):
        piece = bytearray(result[begin:end])
        if len(before) > 1:
            before[-2][:] = b"\xff" * len(before[-2])
        before.append(piece)
        yield memoryview(piece)


def step_for(schema: Schema, aggregation: Aggregation) -> OptimizerStep:
    step = step_of(schema, aggregation)
    assert step is not None
    return step
