"""What the rules that need all updates together share: they hold them, and combine them block by block. Pure.

The updates stay in the buffers that they came in, and nothing that is as large as the model is taken beside them: a few
blocks, some 12 MiB at the most, and for rules of distances 40 bytes for each pair of updates.
"""

from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any

from numpy.typing import NDArray

from aggregator_node.aggregation.block_mean import BlockMean
from aggregator_node.aggregation.released import DELTAS, released_pieces
from aggregator_node.aggregation.rule import Ask, ReadBlock, Rule
from cairn.errors import WrongState
from cairn.model.schema import Schema
from cairn.model.validation import DtypeBlock, runs_of
from cairn.protocol.aggregation import Aggregation
from cairn.runtime.buffer import Buffer


class HeldUpdates(Rule):
    """A rule that reads its updates side by side. All of them count the same. One call at a time."""

    def __init__(self, schema: Schema, aggregation: Aggregation, floor: int) -> None:
        self._schema = schema
        self._aggregation = aggregation
        self._floor = floor
        self._runs = tuple(runs_of(schema))
        self._reads: list[ReadBlock] = []
        self._base: Buffer | None = None
        self._are_deltas = False
        self._mean = BlockMean()

    @classmethod
    def memory_bytes(cls, schema: Schema) -> int:
        """Nothing that depends on the schema."""
        del schema
        return 0

    @classmethod
    def held_updates(cls, cohort: int) -> int:
        """All of them."""
        return cohort

    def begin(self, ask: Ask, base: Buffer | None = None, *, are_deltas: bool = False) -> None:
        """Begin a round; no memory is asked for."""
        del ask
        self._base = base
        self._are_deltas = are_deltas

    def add_blocks(self, read: ReadBlock, weight: int) -> None:
        """Hold an update, to be read when the result is; the order decides between equals."""
        del weight  # all count the same: `check_aggregation` refuses others
        self._reads.append(read)

    def result_blocks(self) -> Iterator[memoryview]:
        """The result. Raises WrongState where the rule has none of so few updates above the floor."""
        averaged = self._aggregation.averages_over(len(self._reads), self._floor)
        if averaged < self._floor:
            raise WrongState(
                f"of {len(self._reads)} updates this rule averages over {averaged}, and the floor is {self._floor}"
            )
        self._look()
        for number, run in enumerate(self._runs):
            base = self._base_of(run) if self._is_delta(run) else None
            combine = partial(self._combine, number)
            yield from released_pieces(self._schema, run, combine, base)

    def reset(self) -> None:
        self._reads.clear()
        self._base = None
        self._mean.erase()

    def _is_delta(self, run: DtypeBlock) -> bool:
        return self._are_deltas and run.dtype in DELTAS

    def _base_of(self, run: DtypeBlock) -> NDArray[Any] | None:
        return None if self._base is None else run.values(self._base)

    def _look(self) -> None:
        """Look at all updates before the first block is combined, where the rule needs to."""

    @abstractmethod
    def _combine(self, number: int, block: slice, dtype: str, out: NDArray[Any]) -> None:
        """Write the combined values of a block of the run, rounded once to the type of this name."""
