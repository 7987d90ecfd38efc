"""`cairn health`."""

from pathlib import Path

import click

from cairn.cli.errors import mistakes_explained
from cairn.cli.health_check import check_health
from cairn.runtime.quoting import say
from cairn.runtime.timeouts import SHORT_WAIT_SECONDS


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
