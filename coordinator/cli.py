"""The command `coordinator`."""

from pathlib import Path

import click

from cairn import __version__
from cairn.runtime.malloc import keep_freed_memory


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Run jobs for a model owner, who receives averages and never one owner's update."""


@main.command()
@click.argument("file", metavar="JOB.toml", type=click.Path(path_type=Path))
@click.option(
    "--config",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The coordinator's TOML file, as `cairn init` writes it.",
)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The run's folder; by default runs/ and the job's name. A run that was cut short goes on.",
)
@click.option(
    "--initial-model",
    metavar="F.safetensors",
    type=click.Path(path_type=Path),
    help="Start from this model instead of the job's.",
)
@click.option(
    "--rounds", metavar="N", type=click.IntRange(1, 1_000_000), help="Instead of the job's."
)
@click.option(
    "--dismiss",
    is_flag=True,
    help="Where the job has ended already: wait for its owners and tell them, so that they stop too.",
)
def run(
    *,
    file: Path,
    config: Path,
    out: Path | None,
    initial_model: Path | None,
    rounds: int | None,
    dismiss: bool,
) -> None:
    """Run the job to its end, and print a line for every round.

    Leaves model.safetensors, release.json and history.jsonl in the run's folder, with [best] in the
    job's file best.safetensors and best.json, and with [statistics] statistics.json. Exit codes: 0 all rounds released, or stopped early,
    1 the job could not be ended, 2 a mistake in a file, 3 a coordinator that was started later has
    taken the job over.
    """
    keep_freed_memory()
    # Imported here, so that --help answers at once.
    from cairn.runtime.process import allow_many_connections, begin, exit_with, run_node
    from coordinator.console import show
    from coordinator.node import Coordinator
    from coordinator.settings import CoordinatorSettings, JobSettings

    def whole() -> int:
        job = JobSettings.load(file).changed(model=initial_model, rounds=rounds)
        settings = CoordinatorSettings.load(config)
        begin(settings.federation, settings.name, keeps_private=False, job=job.name)
        folder, connections = out or Path("runs") / job.name, allow_many_connections(ports=1)
        node = Coordinator(
            job, settings, folder, tell=show, dismiss=dismiss, connections=connections
        )
        return run_node(node)

    exit_with(whole)
