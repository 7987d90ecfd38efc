"""The model of a job that Python describes: what it starts from on the disk, and what it is at the end.

What is given is a module, of which the whole state_dict is exchanged; the tensors that the task exchanges, by name; or the
path of a task's .py file or a .safetensors file, as in a job's file. PyTorch is imported where it is needed.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cairn.errors import UsageError
from cairn.model.safetensors_writer import write_model

if TYPE_CHECKING:
    from torch import Tensor, nn

_FILE = "first_model.safetensors"


class GivenModel:
    """What a job starts from."""

    def __init__(
        self, given: "nn.Module | Mapping[str, Tensor] | str | Path | None", folder: Path
    ) -> None:
        self._given = given
        self._folder = folder

    @property
    def path(self) -> Path:
        """Where the coordinator reads it; relative to the working directory, as `folder` is."""
        return Path(self._given) if isinstance(self._given, str | Path) else self._folder / _FILE

    def write(self) -> None:
        """Put it where the coordinator reads it, if there is one. Raises UsageError for a model that cannot be averaged."""
        if self._given is None:
            return
        if isinstance(self._given, str | Path):
            if not self.path.exists():
                raise UsageError(f"model: there is no such file {self.path}")
            return
        from cairn.tasks.state_dict import payload_of

        schema, payload = payload_of(self._state())
        self._folder.mkdir(parents=True, exist_ok=True)
        write_model(self.path, schema, payload)

    def with_values(self, tensors: "Mapping[str, Tensor]") -> "nn.Module":
        """A module like the one that was given, or that the task's file builds, with these values.

        Entries that are not among them are as they are in that module. Raises UsageError where there is no module.
        """
        module = self._module()
        module.load_state_dict(dict(tensors), strict=False)
        return module

    def _state(self) -> Mapping[str, Any]:
        if isinstance(self._given, Mapping):
            return self._given
        if callable(getattr(self._given, "state_dict", None)):
            return self._given.state_dict()  # type: ignore[union-attr]  # looked at in the line before
        raise UsageError(
            f"model: should be a torch.nn.Module, its tensors by name, or a path, and is {type(self._given).__name__}"
        )

    def _module(self) -> "nn.Module":
        from torch import nn

        if isinstance(self._given, nn.Module):
            return copy.deepcopy(self._given)
        if isinstance(self._given, str | Path) and self.path.suffix == ".py":
            from cairn.tasks.loader import load_task

            return load_task(str(self.path)).model()
        raise UsageError(
            "the job was given tensors and no module: take job.state, which has the released tensors by name"
        )
