"""How an optimizer steps from a round's base, along what the rule gives, to the release: piece by piece. Pure.

The gradient is the rule's result where updates are gradients, and else the pseudo-gradient: the base less the result (Reddi
et al. 2021, arXiv 2003.00295). Integers and bools have none: they are released as the rule gives them.

Every element is computed for itself in binary64, with +, -, *, / and square root alone, in the order of the optimizer's
formula; each is one operation of NumPy, which IEEE 754 rounds. The release is rounded once to the tensor's type, the state
once to F32, and to F64 for F64 tensors: to nearest, ties to even. So neither depends on the machine, nor on how the
rule's result is cut into pieces. A released zero is +0.0, as that of a mean.

The state is what an optimizer keeps of each element from one step to the next. It is a function of released averages
and earlier states, so it holds no more of any owner than averages do, and it never leaves the aggregator. It is a
model of its own: `step`, how many steps were made, and for each run of floats one tensor with the numbers of each
element side by side. So it is written in the order in which the release is, and only blocks are in memory.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.exact_rounding import Rounding
from aggregator_node.aggregation.exact_sum import BLOCK
from aggregator_node.optimizers.adagrad import Adagrad
from aggregator_node.optimizers.adam import Adam
from aggregator_node.optimizers.sgd import Sgd
from aggregator_node.optimizers.yogi import Yogi
from cairn.errors import LimitExceeded
from cairn.model.schema import DTYPES, FLOATS, Schema, TensorSpec
from cairn.model.validation import DtypeBlock, clear_negative_zeros, runs_of
from cairn.protocol.aggregation import Aggregation
from cairn.runtime.buffer import Buffer
from cairn.v1 import round_pb2 as pb

# Takes the next bytes of a state.
WriteState = Callable[[memoryview], object]

_WIDEST = 8  # bytes of an element
_STEP = np.dtype("<i8")


class Optimizer(Protocol):
    """The arithmetic of an optimizer, with its numbers."""

    @property
    def first(self) -> tuple[float, ...]:
        """What is kept of an element, before the first step."""

    def change(
        self, gradients: NDArray[np.float64], kept: NDArray[np.float64], number: int
    ) -> NDArray[np.float64]:
        """What is subtracted from so many elements of the base in step `number`, which begins with 1.

        `kept` has a row for each number of `first`, and a column for each element. It is changed in place.
        """


_OPTIMIZERS: dict["pb.Optimizer", Callable[..., Optimizer]] = {
    pb.OPTIMIZER_SGD: Sgd,
    pb.OPTIMIZER_ADAGRAD: Adagrad,
    pb.OPTIMIZER_ADAM: Adam,
    pb.OPTIMIZER_YOGI: Yogi,
}


class OptimizerStep:
    """The steps of one job with models of one schema.

    `state_schema` is the schema of its state; None where the optimizer keeps nothing.
    """

    def __init__(self, schema: Schema, aggregation: Aggregation) -> None:
        """Take the numbers of the job's optimizer, which is one."""
        self.schema = schema
        self._are_gradients = aggregation.are_gradients
        make = _OPTIMIZERS[aggregation.optimizer]
        self._optimizer = make(**aggregation.optimizer_numbers)
        self._runs = tuple(runs_of(schema))
        self.state_schema = _state_schema(self._runs, len(self._optimizer.first))

    def release_blocks(
        self,
        base: Buffer,
        result: Iterable[memoryview],
        state: Buffer | None = None,
        write_state: WriteState = lambda _: None,
    ) -> Iterator[memoryview]:
        """The bytes of the release in canonical order; each piece lasts until the next but one is asked for.

        `base` is a payload of the schema. `result` is that of the rule, as `Rule.result_blocks` gives it: a piece has elements
        of one type. `state` is a payload of `state_schema`, and None before the first step. The state that follows
        on it is given to `write_state` piece by piece, in canonical order; a piece is used before that returns.

        Raises LimitExceeded where the release or the state leaves the range of its type; nothing may be used before the last
        piece has come.
        """
        number = 1 + (int(np.frombuffer(state, _STEP, 1)[0]) if state is not None else 0)
        if self.state_schema is not None:
            write_state(np.array([number], _STEP).view(np.uint8).data)
        before, rounding = self._read(state), Rounding()
        outs = cycle(np.empty((2, _WIDEST * BLOCK), np.uint8))
        for run, block, piece in self._blocks(result):
            if run.dtype not in FLOATS:
                yield piece
                continue
            values = np.frombuffer(piece, DTYPES[run.dtype])
            out = next(outs)[: values.nbytes].view(values.dtype)
            with np.errstate(all="ignore"):  # what leaves the range is refused, by name
                weights = run.values(base)[block].astype(np.float64)
                gradients = values.astype(np.float64)
                if not self._are_gradients:
                    gradients = weights - gradients
                kept = self._kept(before.get(run.dtype), block)
                change = self._optimizer.change(gradients, kept, number)
                rounding.nearest(weights - change, None, 1, run.dtype, out)
                after = np.ascontiguousarray(kept.T, DTYPES[_kept_as(run.dtype)])
            clear_negative_zeros(out)
            self._check_finite(run, block, out.reshape(-1, 1), "the release")
            self._check_finite(run, block, after, "the optimizer's state")
            if after.size:
                write_state(after.reshape(-1).view(np.uint8).data)
            yield out.view(np.uint8).data

    def _kept(self, before: NDArray[Any] | None, block: slice) -> NDArray[np.float64]:
        """What is kept of the elements of a block: a row for each number."""
        first = self._optimizer.first
        kept = np.empty((len(first), block.stop - block.start))
        kept[:] = np.array(first).reshape(-1, 1) if before is None else before[block].T
        return kept

    def _read(self, state: Buffer | None) -> dict[str, NDArray[Any]]:
        """What was kept of each run's elements, by the type of the run; nothing before the first step."""
        if state is None or self.state_schema is None:
            return {}
        floats = [run for run in self._runs if run.dtype in FLOATS]
        tensors = zip(
            floats, self.state_schema.tensors[1:], self.state_schema.offsets[1:], strict=False
        )
        return {
            run.dtype: np.frombuffer(
                state, DTYPES[tensor.dtype], tensor.shape[0] * tensor.shape[1], begin
            ).reshape(tensor.shape)
            for run, tensor, begin in tensors
        }

    def _blocks(
        self, result: Iterable[memoryview]
    ) -> Iterator[tuple[DtypeBlock, slice, memoryview]]:
        """The result in blocks of at most `BLOCK` elements: each with its run, and where it lies in that."""
        begins, position = [run.begin for run in self._runs], 0
        for piece in result:
            run = self._runs[bisect_right(begins, position) - 1]
            itemsize = DTYPES[run.dtype].itemsize
            for start in range(0, piece.nbytes, BLOCK * itemsize):
                part = piece[start : start + BLOCK * itemsize]
                first = (position - run.begin) // itemsize
                yield run, slice(first, first + part.nbytes // itemsize), part
                position += part.nbytes

    def _check_finite(self, run: DtypeBlock, block: slice, values: NDArray[Any], what: str) -> None:
        """Raise LimitExceeded, by the tensor's name, where one of an element's values, a row of them, is not finite."""
        good = np.isfinite(values).all(axis=1)
        if not good.all():
            name = run.tensor_name(self.schema, block.start + int(good.argmin()))
            raise LimitExceeded(f"{what} exceeds the range of its type at tensor {name}")


def step_of(schema: Schema, aggregation: Aggregation) -> OptimizerStep | None:
    """The steps of a job with this aggregation; None where the release is what the rule gives."""
    if aggregation.optimizer == pb.OPTIMIZER_NONE:
        return None
    return OptimizerStep(schema, aggregation)


def _kept_as(dtype: str) -> str:
    return "F64" if dtype == "F64" else "F32"


def _state_schema(runs: Iterable[DtypeBlock], numbers: int) -> Schema | None:
    """What a state of so many numbers an element looks like.

    The tensors' names begin with a digit, by which they stand in the order of the runs; there are four types at most.
    """
    if not numbers:
        return None
    floats = [run for run in runs if run.dtype in FLOATS]
    tensors = [
        TensorSpec(f"{place}.{run.dtype}", _kept_as(run.dtype), (run.count, numbers))
        for place, run in enumerate(floats)
    ]
    return Schema.of([TensorSpec("step", "I64", ()), *tensors])
