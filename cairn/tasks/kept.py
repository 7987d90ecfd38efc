"""The kept tensors of a task (`Task.keeps`) on their way into its model and out of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cairn.errors import UsageError
from cairn.model.schema import Schema
from cairn.tasks.loader import TaskFailed
from cairn.tasks.partial import split_of
from cairn.tasks.state_dict import WritableBuffer, read_state, schema_of, write_state
from cairn.tasks.task import Task
from cairn.v1 import round_pb2 as pb


@dataclass(frozen=True)
class KeptValues:
    """Memory of this schema's size, in canonical order.

    A round begins with what lies there where `are_there`, and else with what `model()` returns. The task's `train`
    or `gradients` leaves there what it made of them; an evaluation leaves nothing.
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


def write_kept(task: Task, model: nn.Module, kept: KeptValues) -> None:
    """Write what the task's `train` or `gradients` made of what it keeps. Raises TaskFailed, and then writes nothing."""
    try:
        state = split_of(task, model).kept
        difference = kept.schema.difference(schema_of(state, "kept"))
    except UsageError as error:
        raise TaskFailed(str(error), pb.REASON_WRONG_TENSORS) from None
    if difference:
        raise TaskFailed(
            f"training changed the tensors that the task keeps: {difference}",
            pb.REASON_WRONG_TENSORS,
        )
    kept.write(state)
