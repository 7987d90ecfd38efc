"""What the trimmed mean and the bucketed median share: each element is sorted by itself, and its middle averaged. Pure.

F16 and BF16 are compared as binary32, which has them all and which NumPy compares fast. Blocks are divided where there are
many updates, so that the sorted rows take no more than 8 MiB.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.exact_sum import BLOCK
from aggregator_node.aggregation.held_updates import HeldUpdates
from aggregator_node.aggregation.released import blocks
from aggregator_node.aggregation.sorting import sort_columns
from cairn.model.schema import DTYPES, Schema
from cairn.protocol.aggregation import Aggregation

_ELEMENTS = 1 << 18  # of the sorted rows together, and 1024 of each at least
_SHORTEST = 1 << 10
_HALVES = {DTYPES["F16"], DTYPES["BF16"]}


class Scratch:
    """Memory for rows of a block, used for one block after the other."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def rows(self, count: int, length: int, kind: np.dtype[Any]) -> NDArray[Any]:
        """So many rows of so many elements, with whatever is in them."""
        nbytes = count * length * kind.itemsize
        if nbytes > len(self._bytes):  # rarely: the widest types come first in a model
            self.erase()
            self._bytes = np.empty(nbytes, np.uint8)
        return self._bytes[:nbytes].view(kind).reshape(count, length)

    def erase(self) -> None:
        self._bytes.fill(0)


class SortedUpdates(HeldUpdates):
    """A rule that combines each element by itself."""

    def __init__(self, schema: Schema, aggregation: Aggregation, floor: int) -> None:
        super().__init__(schema, aggregation, floor)
        self._rows = Scratch()

    def reset(self) -> None:
        super().reset()
        self._rows.erase()

    def _combine(self, number: int, block: slice, dtype: str, out: NDArray[Any]) -> None:
        updates = [read(number, block) for read in self._reads]
        bits = max(bits for _, bits in updates)
        length = min(BLOCK, max(_SHORTEST, _ELEMENTS // len(updates)))
        for part in blocks(len(out), length):
            self._combine_rows([values[part] for values, _ in updates], bits, dtype, out[part])

    @abstractmethod
    def _combine_rows(
        self, rows: Sequence[NDArray[Any]], bits: int, dtype: str, out: NDArray[Any]
    ) -> None:
        """Combine the values of all updates, in their order; each has at most so many significant bits."""

    def _write_middle(
        self,
        ordered: Sequence[NDArray[Any]],
        trimmed: int,
        bits: int,
        dtype: str,
        out: NDArray[Any],
    ) -> None:
        """Write the mean of sorted rows, of which `trimmed` are left out at each end."""
        kept = ordered[trimmed : len(ordered) - trimmed]
        self._mean.write(((row, bits, 1) for row in kept), len(kept), dtype, out)

    def _sorted(self, rows: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The columns in ascending order; the rows themselves stay as they are."""
        kind = rows[0].dtype
        compared = np.dtype(np.float32) if kind in _HALVES else kind
        copies = self._rows.rows(len(rows) + 1, len(rows[0]), compared)
        for copy, row in zip(copies, rows, strict=False):  # the last is scratch memory
            copy[:] = row
        return sort_columns(copies)
