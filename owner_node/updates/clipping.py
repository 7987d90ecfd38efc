"""Limits how far an update may be from its base, or how long a gradient may be. Pure.

The distance is the L2 norm of update - base over all floating-point tensors together, in binary64.
A gradient has no base: its distance is that from zero.
A longer update becomes base + (update - base) * limit / distance, rounded once to each tensor's type.
Integers and bools, such as a count of batches, stay as they are.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cairn.model.schema import FLOATS, Schema
from cairn.model.validation import runs_of
from cairn.runtime.buffer import Buffer

Block = NDArray[np.float64]


def clip(schema: Schema, base: Buffer | None, update: memoryview | bytearray, limit: float) -> bool:
    """Scale the update down in place where it is further than `limit` from its base, or from zero without one.

    Returns whether it was. All values must be finite (`cairn.model.validation.check_values`).
    """
    largest = max(
        (float(np.abs(half).max()) for _, half, _ in _halves(schema, base, update)), default=0.0
    )
    if largest == 0.0:
        return False
    # In units of the largest, so that no square is too large or too small to be written down.
    total = math.fsum(
        float(np.square(half / largest).sum()) for _, half, _ in _halves(schema, base, update)
    )
    factor = limit / largest / math.sqrt(total)  # of half the difference
    if factor >= 2:  # noqa: PLR2004 - two halves
        return False
    for values, half, start in _halves(schema, base, update):
        values[:] = (start + half * factor).astype(values.dtype)
    return True


def _halves(
    schema: Schema, base: Buffer | None, update: Buffer
) -> Iterator[tuple[NDArray[Any], Block, Block]]:
    """Block by block: the update's own values, half their difference from the base's, and these.

    Half, because the difference of two binary64 values can be too large for one.
    """
    for run in runs_of(schema):
        if run.dtype not in FLOATS:
            continue
        values = run.values(update)
        starts = np.broadcast_to(0.0, len(values)) if base is None else run.values(base)
        for block in run.blocks():
            start = starts[block].astype(np.float64)
            yield values[block], values[block].astype(np.float64) / 2 - start / 2, start
