"""The kept tensors of a task (`Task.keeps`) on their way into its model and out of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cairn.model.schema import Schema
from cairn.tasks.state_dict import WritableBuffer, read_state, schema_of, write_state


@dataclass(frozen=True)
class KeptValues:
    """Memory of this schema's size, in canonical order.

    A round begins with what lies there where `are_there`, and else with what `model()` returns. A training
    leaves there what it made of them; an evaluation leaves nothing.
    """

    schema: Schema
    values: WritableBuffer
    are_there: bool

    @classmethod
    def none_yet(cls, state: Mapping[str, Any]) -> "KeptValues":
        """Memory for these entries of a state_dict. Raises UsageError for one that cannot be kept."""
        schema = schema_of(state, "kept")
        return cls(schema, bytearray(schema.total_bytes), are_there=False)

    def read(self) -> dict[str, Tensor]:
        """The values by name, as a copy that the model may keep; none where none are there."""
        return read_state(self.schema, bytearray(self.values)) if self.are_there else {}

    def write(self, state: Mapping[str, Tensor]) -> None:
        write_state(state, self.schema, self.values)
