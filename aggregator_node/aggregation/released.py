"""How a result is handed out: run by run, in pieces, each looked at before it goes. Pure.

A released zero is +0.0, so that models of equal values have equal bytes: releases are compared by the digests of their
bases. A value outside the range of its type is never released.

Where updates are deltas, their combination is rounded once to bfloat16 and added to the base. What it is made of has as few
bits: said more precisely, it could be taken apart into the deltas of a few owners, as 811 * 13 + 653 * 5 is the sum of no
other two small multiples.
"""

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.exact_sum import BLOCK
from cairn.errors import LimitExceeded
from cairn.model.schema import DTYPES, FLOATS, Schema
from cairn.model.validation import DtypeBlock, clear_negative_zeros

DELTAS = frozenset({"F32", "F64"})  # the types that travel as deltas; see Encoding in round.proto

_PIECE = 4 * BLOCK  # elements that are handed out at once

# Writes the combined values of a block of the run, rounded to the type of this name, to an array of that type.
Combine = Callable[[slice, str, NDArray[Any]], None]


def blocks(count: int, length: int = BLOCK) -> Iterator[slice]:
    """Slices of `length` elements that cover `count`; the last may be shorter."""
    for start in range(0, count, length):
        yield slice(start, min(start + length, count))


def released_pieces(
    schema: Schema, run: DtypeBlock, combine: Combine, base: NDArray[Any] | None = None
) -> Iterator[memoryview]:
    """The bytes of one run of the result; each piece lasts until the next but one is asked for.

    With the base's values of the run, what is combined are deltas from it. Raises LimitExceeded, which names the tensor, for a
    value that is not finite.
    """
    pieces = cycle(np.empty((2, _PIECE), DTYPES[run.dtype]))
    for piece in blocks(run.count, _PIECE):
        out = next(pieces)[: piece.stop - piece.start]
        for part in blocks(len(out)):
            block = slice(piece.start + part.start, piece.start + part.stop)
            with np.errstate(all="ignore"):  # what leaves the range is refused below, by name
                if base is None:
                    combine(block, run.dtype, out[part])
                else:
                    delta = np.empty(part.stop - part.start, DTYPES["BF16"])
                    combine(block, "BF16", delta)
                    np.add(
                        base[block], delta.astype(np.float64), out=out[part], casting="same_kind"
                    )
            if run.dtype in FLOATS:
                _check(schema, run, block.start, out[part])
        yield out.view(np.uint8).data


def _check(schema: Schema, run: DtypeBlock, start: int, out: NDArray[Any]) -> None:
    clear_negative_zeros(out)
    if not (good := np.isfinite(out)).all():
        name = run.tensor_name(schema, start + int(good.argmin()))
        raise LimitExceeded(f"the aggregate of tensor {name} exceeds the range of {run.dtype}")
