"""`cairn health`: asks a node's health with the node's own identity, as containers do.

A coordinator and an aggregator are asked where they listen. An owner listens on nothing: it is
healthy when the aggregator answers it.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
from pydantic import ConfigDict

from cairn.address import Address
from cairn.cli.errors import mistakes_explained
from cairn.config import AddressText, FilePath, IdentityFiles, Settings
from cairn.errors import Unavailable
from cairn.identity.credentials import Identity, load_identity
from cairn.identity.names import Role, node_named_in
from cairn.identity.pem import load_certificate
from cairn.identity.trust import PeerTrust, load_pinned
from cairn.runtime.quoting import say
from cairn.runtime.timeouts import SHORT_WAIT_SECONDS
from cairn.transport.channel import dial
from cairn.transport.health_client import is_serving


class _AnyIdentity(IdentityFiles):
    model_config = ConfigDict(extra="ignore", frozen=True)

    aggregator: FilePath | None = None


class _AnyNode(Settings):
    """What of any node's file is needed here; the node itself checks the rest."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    aggregator: AddressText | None = None
    listen: AddressText | None = None
    listen_owners: AddressText | None = None
    listen_coordinators: AddressText | None = None
    identity: _AnyIdentity


@click.command("health")
@click.option(
    "--config",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The node's TOML file.",
)
@click.option(
    "--timeout",
    default=SHORT_WAIT_SECONDS,
    show_default=True,
    help="Seconds to wait for an answer.",
)
@mistakes_explained
def health(config: Path, timeout: float) -> None:
    """Ask whether the node of FILE is up: exit code 0 when it is.

    An owner listens on nothing, so it is asked whether it reaches its aggregator.
    """
    for address in check_health(config, timeout):
        say(f"{address} is serving")


def check_health(config: Path, seconds: float) -> list[str]:
    """Ask each address that the file's node answers for, or depends on; returns them.

    Raises UsageError for a bad file, Unavailable where one does not answer or is stopping.
    """
    settings = _AnyNode.load(config)
    node = node_named_in(load_certificate(settings.identity.certificate))
    identity = load_identity(settings.identity, node, datetime.now(UTC))
    asked = []
    for address, pinned in _addresses(settings, identity):
        with dial(address, identity, pinned) as channel:
            if not is_serving(channel, seconds):
                raise Unavailable(f"{address} is not serving")
        asked.append(address)
    return asked


def _addresses(settings: _AnyNode, identity: Identity) -> Iterator[tuple[str, PeerTrust | None]]:
    """Each address, with what is pinned for it."""
    if identity.node.role is Role.OWNER:
        pin = settings.identity.aggregator
        if settings.aggregator is not None and pin is not None:
            federation = identity.node.federation
            yield (
                settings.aggregator,
                load_pinned(pin, Role.AGGREGATOR, federation, datetime.now(UTC)),
            )
        return
    for address in (settings.listen, settings.listen_owners, settings.listen_coordinators):
        if address is not None:
            yield Address.parse(address).dialled_here, None
