"""The owner's TOML file: its side of the contract, which no coordinator can override."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from cairn.limits import MAX_COHORT, MIN_COHORT
from cairn.settings import (
    Address,
    FilePath,
    Name,
    NodeLabel,
    PinnedIdentityFiles,
    Seconds,
    Settings,
    SigningKeyText,
)


def _task_source(text: str, info: ValidationInfo) -> str:
    """A path of a .py file, made relative to the TOML file, or "package.module:attribute"."""
    if ":" in text and not text.endswith(".py"):
        return text
    directory = (info.context or {}).get("directory", Path())
    return str(Path(directory) / Path(text).expanduser())


TaskSourceText = Annotated[str, AfterValidator(_task_source)]


class TaskSettings(Settings):
    """A task this owner has read and approved.

    `settings` says, for each number a job may set, the smallest and the largest this owner allows.
    """

    file: TaskSourceText
    data: FilePath
    settings: dict[str, tuple[float, float]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_ranges(self) -> "TaskSettings":
        for key, (low, high) in self.settings.items():
            if not low <= high:
                raise ValueError(f"settings.{key} = [{low:g}, {high:g}]: the smaller comes first")
        return self


class OwnerSettings(Settings):
    """Everything an owner node is told.

    `floor` is the smallest cohort this owner takes part in. `patience_seconds` is how long a
    coordinator that cannot be reached is waited for.
    """

    federation: NodeLabel
    name: NodeLabel
    coordinator: Address
    aggregator: Address
    aggregator_signing_key: SigningKeyText
    floor: Annotated[int, Field(ge=MIN_COHORT, le=MAX_COHORT)] = 3
    patience_seconds: Seconds = 3600
    identity: PinnedIdentityFiles
    tasks: dict[Name, TaskSettings] = Field(default_factory=dict)
