"""The owner's TOML file: its side of the contract, which no coordinator can override."""

from typing import Annotated, ClassVar

from pydantic import Field

from cairn.config import (
    AddressText,
    FilePath,
    Name,
    NodeLabel,
    PinnedIdentityFiles,
    Seconds,
    Settings,
    SigningKeyText,
)
from cairn.protocol.limits import (
    LARGEST_SHARE,
    MAX_COHORT,
    MIN_COHORT,
)
from cairn.runtime.timeouts import STANDBY_TIMEOUT_SECONDS
from cairn.tasks.settings import TaskSettings


class OwnerSettings(Settings):
    """Everything an owner node is told.

    `coordinator_certificate` is a file with the certificates that this owner accepts of the coordinator, one
    after the other; without it, it accepts any that the authority has issued to a coordinator.
    `state` is the directory of this owner's own ledger, which must outlive the node, of what its
    tasks keep from round to round, and of its finished update while the round is open. `floor` is the
    smallest cohort this owner takes part in. `trusted` lists the owners whose updates this owner
    believes to be real; itself is among them. Where it is given, so many of them must be sure to be in
    every average as `floor` says. `largest_share` is the largest share of an average's total weight that this
    owner lets one update count for: it declines a round whose manifest allows more. `largest_value` is the
    largest floating-point value that a base may have. `largest_model_megabytes` is the largest model of a
    job, whatever the task's own is: a job has exactly the task's, or it is declined before anything is
    fetched. `patience_seconds` is how long a coordinator that cannot be reached is waited for.
    """

    kind: ClassVar[str] = "an owner"
    federation: NodeLabel
    name: NodeLabel
    coordinator: AddressText
    coordinator_certificate: FilePath | None = None
    aggregator: AddressText
    aggregator_signing_key: SigningKeyText
    state: FilePath
    floor: Annotated[int, Field(ge=MIN_COHORT, le=MAX_COHORT)] = 3
    trusted: tuple[NodeLabel, ...] | None = None
    largest_share: Annotated[float, Field(gt=0, le=LARGEST_SHARE)] = LARGEST_SHARE
    largest_value: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e9
    largest_model_megabytes: Annotated[int, Field(ge=1, le=1 << 26)] = 8192
    patience_seconds: Seconds = STANDBY_TIMEOUT_SECONDS
    identity: PinnedIdentityFiles
    tasks: dict[Name, TaskSettings] = Field(default_factory=dict)
