"""`cairn demo`."""

import sys
from pathlib import Path

import click

from cairn.cli.demo import Demo, clear, example_folder, run_demo
from cairn.cli.errors import mistakes_explained
from cairn.errors import UsageError

_path = click.Path(path_type=Path)


@click.command("demo")
@click.argument("name")
@click.option("--out", type=_path, metavar="DIR", help="The run's folder; by default runs/NAME.")
@click.option("--job", default="job.toml", show_default=True, help="A job file of the example.")
@click.option(
    "--initial-model",
    type=_path,
    metavar="F.safetensors",
    help="Start from this model instead of the job's.",
)
@click.option(
    "--rounds", type=click.IntRange(1, 1_000_000), metavar="N", help="Instead of the job's."
)
@click.option("--force", is_flag=True, help="Start anew where DIR holds an earlier demo.")
@mistakes_explained
def demo(
    *,
    name: str,
    out: Path | None,
    job: str,
    initial_model: Path | None,
    rounds: int | None,
    force: bool,
) -> None:
    """Run the example NAME: certificates, an aggregator, its owners and a coordinator.

    Every node is a process of its own on this machine, and every connection is mTLS. Leaves
    model.safetensors, history.jsonl and release.json in DIR. The exit code is the coordinator's.
    """
    example = example_folder(name)
    folder = out or Path("runs") / name
    if force:
        clear(folder)
    elif folder.exists() and any(folder.iterdir()) and not (folder / "federation").exists():
        raise UsageError(f"{folder} is not empty: choose another --out")
    if not (example / job).exists():
        raise UsageError(f"the example {name} has no {job}")
    sys.exit(run_demo(Demo(example, example / job, folder, initial_model, rounds)))
