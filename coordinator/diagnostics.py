"""What is checked of a coordinator, at the start of a run and by `cairn doctor`."""

from pathlib import Path

from cairn.diagnostics.preflight import NodeChecks, Peer
from cairn.identity.names import NodeName, Role
from cairn.storage.directory import run_folder
from coordinator.settings import CoordinatorSettings


def node_of_file(path: Path) -> NodeChecks:
    """Read the file. Raises UsageError, with a line for every key that is wrong."""
    return node_of(CoordinatorSettings.load(path))


def node_of(settings: CoordinatorSettings, out: Path | None = None) -> NodeChecks:
    """What to check; `out` is the folder of the run, which the file does not name."""
    return NodeChecks(
        name=NodeName(settings.federation, Role.COORDINATOR, settings.name),
        identity=settings.identity,
        config=settings.read_from,
        pin=settings.identity.aggregator,
        place=None if out is None else run_folder(out),
        listens={"listen": settings.listen},
        peers=(Peer(Role.AGGREGATOR, settings.aggregator, "aggregator", "listen_coordinators"),),
    )
