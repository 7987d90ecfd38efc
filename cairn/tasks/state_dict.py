"""Between a PyTorch state_dict and the canonical bytes of a model (cairn/model/schema.py).

What becomes of a tensor on its way through a round:

- Every entry of `state_dict()` that the task exchanges (cairn/tasks/partial.py) is shared, buffers included,
  under its own name and exact type: bool, uint8, int8, int16, int32, int64, float16, bfloat16, float32
  and float64. Nothing is ever cast.
- Integers and bools (BatchNorm's num_batches_tracked, a mask) are averaged exactly and rounded to the
  nearest value of their type; floating-point values are averaged exactly and rounded once.
- A scalar travels as one value, an empty tensor as none.
- Memory layout stays at home: bytes travel row-major, and `load_state_dict` copies them into whatever
  strides (transposed, channels_last) the model has.
- Tied weights travel under each of their names, with the same bytes.
- Other types (complex, quantised, sparse, float8), tensors without values (meta, lazy) and entries
  that are no tensors (get_extra_state) are refused with a sentence that names the entry, and so they are where
  the task keeps them. A private entry may be of any type.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cairn.errors import InvalidMessage, UsageError
from cairn.model.schema import Schema, TensorSpec

WritableBuffer = bytearray | memoryview | NDArray[np.uint8]

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


def schema_of(state: Mapping[str, Any], to_be: Literal["averaged", "kept"] = "averaged") -> Schema:
    """Describe a state_dict. Raises UsageError for an entry that cannot travel, or be kept."""
    try:
        return Schema.of(_spec(name, value, to_be) for name, value in state.items())
    except InvalidMessage as error:
        raise UsageError(f"the model cannot be {to_be}: {error}") from error


def write_state(state: Mapping[str, Tensor], schema: Schema, payload: WritableBuffer) -> None:
    """Write the values that this schema names, and no others, in canonical order."""
    for name, slot in read_state(schema, payload).items():
        slot.copy_(state[name].detach())


def read_state(schema: Schema, payload: WritableBuffer) -> dict[str, Tensor]:
    """Name the tensors of a payload. They are views: they share its memory, in both directions."""
    return {
        spec.name: _slot(spec, begin, payload)
        for spec, begin in zip(schema.tensors, schema.offsets, strict=False)
    }


def payload_of(state: Mapping[str, Any]) -> tuple[Schema, bytearray]:
    """Describe and copy a whole state_dict. Raises UsageError for an entry that cannot travel."""
    schema = schema_of(state)
    payload = bytearray(schema.total_bytes)
    write_state(state, schema, payload)
    return schema, payload


def facts_of(value: Any) -> tuple[str, tuple[int, ...], int]:
    """The type, shape and bytes of an entry, of whatever kind; no bytes where it is no dense tensor."""
    if not isinstance(value, Tensor) or nn.parameter.is_lazy(value):
        return type(value).__name__, (), 0
    dtype = _NAMES.get(value.dtype, str(value.dtype).removeprefix("torch."))
    if value.is_nested or value.layout is not torch.strided:
        return dtype, (), 0
    return dtype, tuple(value.shape), value.numel() * value.element_size()


def _slot(spec: TensorSpec, begin: int, payload: WritableBuffer) -> Tensor:
    dtype = _TYPES[spec.dtype]
    if not spec.nbytes:  # frombuffer refuses to make a tensor of nothing
        return torch.empty(spec.shape, dtype=dtype)
    flat = torch.frombuffer(payload, dtype=dtype, count=math.prod(spec.shape), offset=begin)
    return flat.view(spec.shape)


def _spec(name: str, value: Any, to_be: str) -> TensorSpec:
    if not isinstance(value, Tensor):
        raise UsageError(
            f"the model's {name} is of type {type(value).__name__}, and only tensors can be {to_be};"
            " keep it out of the state_dict"
        )
    if nn.parameter.is_lazy(value):
        raise UsageError(
            f"the model's tensor {name} has no shape yet; give its layer all sizes,"
            " so that every party builds the same model"
        )
    if value.is_meta:
        raise UsageError(f"the model's tensor {name} is on the meta device and has no values")
    if value.is_nested or value.layout is not torch.strided or value.dtype not in _NAMES:
        kind = str(value.dtype if value.dtype not in _NAMES else value.layout)
        raise UsageError(
            f"the model's tensor {name} is of type {kind.removeprefix('torch.')}, which cannot be"
            f" {to_be}; the types are {', '.join(str(dtype)[6:] for dtype in _NAMES)}, all dense"
        )
    return TensorSpec(name, _NAMES[value.dtype], tuple(value.shape))
