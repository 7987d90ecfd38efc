"""What a whole federation shall look like, checked before anything of it is made. Reads one file."""

from dataclasses import dataclass
from pathlib import Path

from cairn.address import Address
from cairn.config import Settings
from cairn.errors import UsageError
from cairn.identity.names import NodeName, Role
from cairn.tasks.settings import TaskSettings

AUTHORITY = "authority"
RESERVED = frozenset({AUTHORITY, Role.AGGREGATOR.value, Role.COORDINATOR.value})
MIN_FLOOR = 2
USUAL_FLOOR = 3


@dataclass(frozen=True)
class FederationPlan:
    """The parties of a federation and where they meet. Raises UsageError for what could not work.

    Owners dial the coordinator at `coordinator_address` and the aggregator at `intake_address`; the
    coordinator dials the aggregator at `release_address`. `tasks_file` holds the [tasks.NAME] tables
    for every owner's file, and `data` is the directory that takes the place of `{data}` in them.
    """

    name: str
    owners: tuple[str, ...]
    floor: int
    coordinator_address: str = "localhost:7441"
    intake_address: str = "localhost:7443"
    release_address: str = "localhost:7444"
    tasks_file: Path | None = None
    data: Path | None = None

    def __post_init__(self) -> None:
        _check_owners(self.name, self.owners)
        if not MIN_FLOOR <= self.floor <= len(self.owners):
            raise UsageError(
                f"the floor is {self.floor}, but with {len(self.owners)} owners it should be"
                f" {MIN_FLOOR} to {len(self.owners)}"
            )
        if Address.parse(self.intake_address).port == Address.parse(self.release_address).port:
            raise UsageError(
                f"the aggregator cannot await owners ({self.intake_address}) and the coordinator"
                f" ({self.release_address}) on one port; give two"
            )
        if self.coordinator_address in {self.intake_address, self.release_address}:
            raise UsageError(
                f"the coordinator and the aggregator cannot both be at {self.coordinator_address}"
            )
        Address.parse(self.coordinator_address)


def usual_floor(owners: int) -> int:
    """The floor where nobody states one."""
    return max(MIN_FLOOR, min(USUAL_FLOOR, owners))


def _check_owners(federation: str, owners: tuple[str, ...]) -> None:
    for owner in owners:
        NodeName(federation, Role.OWNER, owner)
        if owner in RESERVED:
            raise UsageError(f"an owner cannot be called {owner}: that is a directory of its own")
        if owners.count(owner) > 1:
            raise UsageError(f"the owner {owner} is listed twice; names are unique")
    if len(owners) < MIN_FLOOR:
        raise UsageError(
            f"a federation has at least {MIN_FLOOR} owners and this one has {len(owners)}: the average"
            " of a single update is that update, so a cohort of one is always refused"
        )


class _TasksFile(Settings):
    """The tables of an owner's tasks. In `data`, `{owner}` is the owner's name and `{data}` the plan's directory."""

    tasks: dict[str, TaskSettings]


def read_tasks(path: Path) -> dict[str, TaskSettings]:
    """Read a tasks file; its paths become absolute. Raises UsageError that names what is wrong."""
    return _TasksFile.load(path.resolve()).tasks
