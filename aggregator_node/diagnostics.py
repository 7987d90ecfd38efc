"""What is checked of an aggregator, at its start and by `cairn doctor`. It dials nobody."""

from pathlib import Path

from aggregator_node.memory_locking import swap_findings
from aggregator_node.settings import AggregatorSettings
from cairn.diagnostics.preflight import NodeChecks
from cairn.identity.names import NodeName, Role
from cairn.storage.directory import AGGREGATOR_DATABASE, state_directory


def node_of_file(path: Path) -> NodeChecks:
    """Read the file. Raises UsageError, with a line for every key that is wrong."""
    return node_of(AggregatorSettings.load(path))


def node_of(settings: AggregatorSettings) -> NodeChecks:
    return NodeChecks(
        name=NodeName(settings.federation, Role.AGGREGATOR, settings.name),
        identity=settings.identity,
        config=settings.read_from,
        signing_key=settings.identity.signing_key,
        place=state_directory(settings.state),
        database=AGGREGATOR_DATABASE,
        listens={
            "listen_owners": settings.listen_owners,
            "listen_coordinators": settings.listen_coordinators,
        },
        further=swap_findings(),
    )
