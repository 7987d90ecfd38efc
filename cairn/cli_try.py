"""`cairn try`: one round of a task, offline and in this process, and what would leave the site."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cairn.cli_identity import mistakes_explained
from cairn.errors import UsageError
from cairn.model_files import read_model
from cairn.task import Round, Site, Task
from cairn.task_loading import TaskFailed, load_task, own_traceback
from cairn.tensors import Schema

if TYPE_CHECKING:
    from cairn.task_running import Outcome


@click.command("try")
@click.argument("task")
@click.option("--data", type=Path, required=True, help="The data path the task is given.")
@click.option("--name", default="me", show_default=True, help="The owner's name.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=NUMBER", help="A setting; may be repeated."
)
@click.option(
    "--initial-model", type=Path, help="Start from this safetensors file; else from model()."
)
@click.option("--seed", default=0, show_default=True, help="Seeds PyTorch before model().")
@mistakes_explained
def try_task(
    *,
    task: str,
    data: Path,
    name: str,
    settings: tuple[str, ...],
    initial_model: Path | None,
    seed: int,
) -> None:
    """Run one round of TASK offline and show what would leave this site. Nothing is sent.

    TASK is a file that ends in .py, or "package.module:attribute".
    """
    if not data.exists():
        raise UsageError(f"--data: there is no {data}; expected an existing file or directory")
    numbers = dict(_setting(text) for text in settings)
    try:
        _run(load_task(task), Site(name, data), Round("try", 1, numbers), (initial_model, seed))
    except TaskFailed as failed:
        click.echo(own_traceback(failed), nl=False, err=True)
        raise


def _run(task: Task, site: Site, this: Round, start: tuple[Path | None, int]) -> None:
    # PyTorch takes seconds to import, and the other commands do without it.
    from cairn.task_running import TaskRunner, first_model

    initial_model, seed = start
    schema, base = first_model(task, seed)
    if initial_model is not None:
        schema, values = read_model(initial_model)
        base = bytearray(values)
    runner = TaskRunner(task, site)
    update = bytearray(schema.total_bytes)
    trained = runner.train(this, schema, base, update)
    evaluated = runner.evaluate(this, schema, update) if task.evaluate else None
    console = Console(file=sys.stdout, soft_wrap=True)
    console.print("What would leave this site, to the aggregator only:\n")
    console.print(_tensor_table(schema))
    console.print(f"{schema.total_bytes} bytes, SHA-256 {schema.digest(update).hex()}")
    _print_outcome(console, "train", trained)
    if evaluated is not None:
        _print_outcome(console, "evaluate", evaluated)
    names = sorted({*trained.metrics, *(evaluated.metrics if evaluated else ())})
    if names:
        console.print(
            "\nA metric leaves only where the owner's file lists it; for these:\n"
            f"  metrics = {json.dumps(names, ensure_ascii=False)}",
            markup=False,
        )
    console.print("\nNothing was sent: this was a trial on this machine.")


def _tensor_table(schema: Schema) -> Table:
    table = Table("tensor", "type", "shape", "bytes")
    for column in table.columns:
        column.overflow = "fold"
    for spec in schema.tensors:
        shape = " x ".join(map(str, spec.shape)) or "scalar"
        table.add_row(escape(spec.name), spec.dtype, shape, str(spec.nbytes))
    return table


def _print_outcome(console: Console, part: str, outcome: "Outcome") -> None:
    console.print(f"\n{part}: {outcome.examples} examples")
    for name, value in outcome.metrics.items():
        console.print(f"  {name} = {value:.6g}", markup=False)


def _setting(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise UsageError(f"--set {text}: expected NAME=NUMBER, for example --set lr=0.1")
    return name, value
