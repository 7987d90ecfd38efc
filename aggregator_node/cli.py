"""The command `aggregator-node`."""

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
    help="The aggregator's TOML file, as `cairn init` writes it.",
)
@click.option(
    "--once", is_flag=True, help="Stop once the coordinator has collected its job and left."
)
@click.version_option(__version__)
def main(*, config: Path, once: bool) -> None:
    """Run the trusted aggregator: it averages what owners push and releases only the average.

    Stops on SIGTERM or Ctrl-C. Exit codes: 0 stopped, 1 failed, 2 a mistake in a file.
    """
    # Imported here, so that --help answers at once.
    from aggregator_node.hardening import erase_freed_memory, harden_process

    erases = erase_freed_memory()  # before the rest is imported: it may start the process anew
    keep_freed_memory()

    from aggregator_node.node import AggregatorNode
    from aggregator_node.settings import AggregatorSettings
    from cairn.runtime.clock import Clock
    from cairn.runtime.process import allow_many_connections, begin, exit_with, run_node

    def run() -> int:
        settings = AggregatorSettings.load(config)
        begin(settings.federation, settings.name, keeps_private=True)
        harden_process(erases=erases)
        connections = allow_many_connections(ports=2)
        return run_node(AggregatorNode(settings, Clock(), once=once, connections=connections))

    exit_with(run)
