"""The command `owner-node`."""

from pathlib import Path

import click

from cairn import __version__
from cairn.runtime.malloc import keep_freed_memory


@click.command()
@click.option(
    "--config",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The owner's TOML file, as `cairn init` writes it.",
)
@click.option("--once", is_flag=True, help="Stop when the coordinator's job has ended.")
@click.version_option(__version__)
def main(*, config: Path, once: bool) -> None:
    """Run a data owner's node: it trains on private data, and sends updates to the aggregator only.

    It dials out and listens on nothing. Stops on SIGTERM or Ctrl-C. Exit codes: 0 stopped, 1 the
    coordinator could not be reached or refused this owner, 2 a mistake in a file.
    """
    keep_freed_memory()
    # Imported here, so that --help answers at once.
    from cairn.runtime.clock import Clock
    from cairn.runtime.process import begin, exit_with, run_node
    from owner_node.node import OwnerNode
    from owner_node.settings import OwnerSettings

    def run() -> int:
        settings = OwnerSettings.load(config)
        begin(settings.federation, settings.name, keeps_private=True)
        return run_node(OwnerNode(settings, Clock(), once=once))

    exit_with(run)
