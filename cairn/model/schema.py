"""The schema of a model, and the one canonical form of its bytes. Pure.

The canonical form of a model is the file that `safetensors.torch.save_file` writes for its state_dict
without metadata (https://huggingface.co/docs/safetensors): tensors ordered by descending type, then by
name, and their little-endian, row-major bytes one after the other. The wire carries the schema once
and then those bytes only; the digest of a model is the BLAKE3 of the file, so that anybody can check
it with `b3sum` (https://github.com/BLAKE3-team/BLAKE3-specs). SHA-256 takes three times as long, which was
more than a third of all that a round of a large model costs.

Tied weights are several names for one tensor. Each name travels, because the bytes under both are
equal before and after every round: the same arithmetic is applied to the same numbers.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import ml_dtypes
import numpy as np
from blake3 import blake3

from cairn.errors import InvalidMessage
from cairn.runtime.buffer import Buffer

# In the order of safetensors' own enumeration, on which its file order depends.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
}
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
_RANK = {name: rank for rank, name in enumerate(DTYPES)}

CHUNK_BYTES = 1 << 20
DIGEST_BYTES = 32
MAX_TENSORS = 100_000
MAX_NAME_BYTES = 512
MAX_DIMENSIONS = 64
MAX_MODEL_BYTES = 1 << 46


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor without its values: its name, its type (a key of `DTYPES`) and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Schema:
    """The tensors of a model in canonical order. Build it with `Schema.of`."""

    tensors: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, tensors: Iterable[TensorSpec]) -> "Schema":
        """Order the tensors canonically.

        Raises InvalidMessage for no tensor, a name twice, an unknown type or sizes beyond the limits.
        """
        listed = list(tensors)
        for tensor in listed:
            _check(tensor)
        ordered = tuple(sorted(listed, key=lambda tensor: (-_RANK[tensor.dtype], tensor.name)))
        names = {tensor.name for tensor in ordered}
        if not 1 <= len(ordered) <= MAX_TENSORS:
            raise InvalidMessage(f"a model has 1 to {MAX_TENSORS} tensors, this one {len(ordered)}")
        if len(names) != len(ordered):
            raise InvalidMessage("two tensors of the model have the same name")
        schema = cls(ordered)
        if schema.total_bytes > MAX_MODEL_BYTES:
            raise InvalidMessage(f"the model is larger than {MAX_MODEL_BYTES} bytes")
        return schema

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor begins in the payload, and last where the payload ends, in bytes."""
        return tuple(accumulate((tensor.nbytes for tensor in self.tensors), initial=0))

    @property
    def total_bytes(self) -> int:
        """The size of the payload: all values of all tensors."""
        return self.offsets[-1]

    def header(self) -> bytes:
        """Everything of the canonical file that comes before the payload."""
        return self._header

    @cached_property
    def _header(self) -> bytes:
        entries = {
            tensor.name: {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
            for tensor, begin, end in zip(
                self.tensors, self.offsets, self.offsets[1:], strict=False
            )
        }
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def hasher(self) -> blake3:
        """A BLAKE3 that has seen the header: feed it the payload to get the model's digest."""
        return blake3(self.header())

    def digest(self, payload: Buffer) -> bytes:
        """The digest of the model with these values."""
        hasher = self.hasher()
        hasher.update(payload)
        return hasher.digest()

    def difference(self, other: "Schema") -> str:
        """Say in words how `other` differs from this schema; empty where it does not."""
        mine = {tensor.name: tensor for tensor in self.tensors}
        theirs = {tensor.name: tensor for tensor in other.tensors}
        for name in [*mine, *theirs]:
            if name not in theirs:
                return f"{mine[name]} is missing"
            if name not in mine:
                return f"{theirs[name]} is not part of the model"
            if mine[name] != theirs[name]:
                return f"{theirs[name]} should be {mine[name]}"
        return ""


def _check(tensor: TensorSpec) -> None:
    try:
        name_bytes = len(tensor.name.encode())
    except UnicodeEncodeError:
        raise InvalidMessage("a tensor's name is not valid Unicode") from None
    if not 1 <= name_bytes <= MAX_NAME_BYTES:
        raise InvalidMessage(f"a tensor's name has 1 to {MAX_NAME_BYTES} bytes")
    if tensor.name == "__metadata__":
        raise InvalidMessage(
            "a tensor cannot be called __metadata__: safetensors reserves the name"
        )
    if tensor.dtype not in DTYPES:
        raise InvalidMessage(
            f"tensor {tensor.name} has the type {tensor.dtype}, which cannot be averaged;"
            f" the types are {', '.join(DTYPES)}"
        )
    if len(tensor.shape) > MAX_DIMENSIONS or any(n < 0 or n > 1 << 62 for n in tensor.shape):
        raise InvalidMessage(f"tensor {tensor.name} has an impossible shape")
