"""What an aggregation rule is to a round: how accepted updates become the one model that is released.

`rules` lists them; each is a module of its own. A round gives a rule its memory, adds every accepted update to it
block by block, asks for the result once, and resets it. It knows nothing else of it. Over how many owners a result averages at
least is a part of the contract that every party checks: `Aggregation.averages_over` (cairn/protocol/aggregation.py).
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from numpy.typing import NDArray

from cairn.model.schema import Schema
from cairn.protocol.aggregation import Aggregation
from cairn.runtime.buffer import Buffer

# Asks for so many bytes more; raises Unavailable where there are none.
Ask = Callable[[int], None]

# A block of an update: of which run, by its number, and which elements of it. Returns the elements, whole
# or as deltas, and how many significant bits each has at the most; integers have no use for these.
ReadBlock = Callable[[int, slice], tuple[NDArray[Any], int]]


class Rule(Protocol):
    """A rule at work on updates of one schema. One call at a time; the same for round after round.

    Whatever it returns is the same, to the bit, in every order of arrival and on every machine. A rule that holds updates may
    depend on the order in which it is given them, which has nothing to do with their arrival.
    """

    def __init__(self, schema: Schema, aggregation: Aggregation, floor: int) -> None:
        """Take the memory of `memory_bytes`. Raises OSError or MemoryError where the system has not as much."""

    @classmethod
    def memory_bytes(cls, schema: Schema) -> int:
        """What it takes for updates of this schema, however many there are, beside the updates that it holds."""

    @classmethod
    def held_updates(cls, cohort: int) -> int:
        """How many updates it has to hold to the end of a round of so many owners."""

    def begin(self, ask: Ask, base: Buffer | None = None, *, are_deltas: bool = False) -> None:
        """Begin a round; memory beyond `memory_bytes` is asked for.

        `base` has the values that the round starts from, where updates are deltas from them or the aggregation
        needs them; there is none for gradients. With `are_deltas`, F32 and F64 elements are read as deltas.
        """

    def add_blocks(self, read: ReadBlock, weight: int) -> None:
        """Add one update that is read block by block, in canonical order; it counts `weight` times.

        A rule that holds updates is given all of them after the seal, in an order that depends on the manifest
        alone; it may keep `read`, which is good until the reset.

        What `read` returns is used before it is called again; it must not raise. Several updates may be read side by side. Raises UpdateRefused or LimitExceeded for
        a weight that cannot be; then nothing was added. Raises Unavailable where memory was refused; then it is good for
        nothing before its reset.
        """

    def result_blocks(self) -> Iterator[memoryview]:
        """The bytes of the result in canonical order; each piece lasts until the next but one is asked for.

        Raises WrongState where nothing was added, or too little for the rule, and LimitExceeded where the result leaves the range of its type: nothing may be used before the
        last piece has come.
        """

    def reset(self) -> None:
        """Forget all updates and overwrite what they left, but keep the memory for the next round."""
