"""`cairn try`: one round of a task, offline and in this process, and what would leave the site."""

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cairn.cli.errors import mistakes_explained
from cairn.cli.try_private import TriedBudget, private_option
from cairn.config import ModelContentWord
from cairn.errors import UpdateRefused, UsageError
from cairn.model.safetensors_reader import read_model
from cairn.model.schema import Schema
from cairn.model.validation import ANY_FINITE, check_values
from cairn.runtime.quoting import quoted
from cairn.tasks.environment import as_the_task_has_it
from cairn.tasks.loader import TaskFailed, load_task, own_traceback
from cairn.tasks.task import Round, Site, Task

if TYPE_CHECKING:
    from cairn.tasks.runner import Outcome

Entries = Mapping[str, Any]
Row = tuple[str, str, tuple[int, ...], int]


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
@click.option(
    "--content",
    type=click.Choice(get_args(ModelContentWord)),
    help="What the job asks for; by default weights, if the task has a train function.",
)
@click.option(
    "--environment",
    multiple=True,
    metavar="NAME",
    help="An environment variable that the owner's file names for the task; may be repeated.",
)
@private_option
@mistakes_explained
def try_task(
    *,
    task: str,
    data: Path,
    name: str,
    settings: tuple[str, ...],
    initial_model: Path | None,
    seed: int,
    content: ModelContentWord | None,
    environment: tuple[str, ...],
    private: tuple[float, float, float, float] | None,
) -> None:
    """Run one round of TASK offline and show what would leave this site. Nothing is sent.

    TASK is a file that ends in .py, or "package.module:attribute". It gets the environment variables that an
    owner's node would pass on to it, and runs without a sandbox.
    """
    if not data.exists():
        raise UsageError(f"--data: there is no {data}; expected an existing file or directory")
    numbers = dict(_setting(text) for text in settings)
    try:
        with as_the_task_has_it(environment):
            loaded = load_task(task)
            if private and content == "gradients":
                raise UsageError(
                    "--private: private training is that of weights; leave --content gradients out"
                )
            word = content or ("gradients" if loaded.train is None else "weights")
            start = _Start(initial_model, seed, word == "gradients", TriedBudget.of(private))
            _run(loaded, Site(name, data), Round("try", 1, numbers), start)
    except TaskFailed as failed:
        click.echo(own_traceback(failed), nl=False, err=True)
        raise


@dataclass(frozen=True)
class _Start:
    """What the round starts from, whether its job asks for gradients, and the budget of its private training."""

    initial_model: Path | None
    seed: int
    gradients: bool
    budget: TriedBudget | None


def _run(task: Task, site: Site, this: Round, start: _Start) -> None:
    # PyTorch takes seconds to import, and the other commands do without it.
    from cairn.tasks.first_model import first_split
    from cairn.tasks.kept import KeptValues
    from cairn.tasks.runner import TaskRunner
    from cairn.tasks.state_dict import payload_of

    seed, gradients = start.seed, start.gradients
    split = first_split(task, seed, gradients=gradients)
    schema, update = payload_of(split.shared)
    if start.initial_model is not None:
        schema, values = read_model(start.initial_model)
        update = bytearray(values)
    kept = KeptValues.none_yet(split.kept) if split.kept else None
    base, model = bytearray(update), bytearray(update)
    runner = TaskRunner(task, site)
    begins = time.monotonic()
    if gradients:
        trained = runner.gradients(this, schema, base, update, kept)
    else:
        privacy = start.budget.privacy if start.budget else None
        trained = runner.train(this, schema, base, update, kept, privacy)
    seconds = time.monotonic() - begins
    _check_finite(schema, update)
    digest = schema.digest(update)
    # A gradient is no model: what it was taken of is.
    model = model if gradients else update
    if kept is not None:
        kept = replace(kept, are_there=True)
    evaluated = (
        runner.evaluate(this, schema, model, kept, gradients=gradients) if task.evaluate else None
    )
    console = Console(file=sys.stdout, soft_wrap=True)
    _print_leaves(console, schema, digest)
    if split.kept:
        _print_kept(console, split.kept)
    if split.private:
        _print_private(
            console, split.private, first_split(task, seed + 1, gradients=gradients).private
        )
    _print_outcome(console, "gradients" if gradients else "train", trained)
    console.print(f"  {seconds:.2g} s, reading the data included", markup=False)
    if evaluated is not None:
        _print_outcome(console, "evaluate", evaluated)
    if start.budget is not None:
        console.print("\n" + "\n".join(start.budget.lines()), markup=False)
        console.print("\nNo metric would leave: metrics of private data are without noise.")
    else:
        _print_metrics(console, {*trained.metrics, *(evaluated.metrics if evaluated else ())})
    console.print("\nNothing was sent: this was a trial on this machine.")


def _print_metrics(console: Console, names: set[str]) -> None:
    if names:
        console.print(
            "\nA metric leaves only where the owner's file lists it; for these:\n"
            f"  metrics = {json.dumps(sorted(names), ensure_ascii=False)}",
            markup=False,
        )


def _check_finite(schema: Schema, update: bytearray) -> None:
    try:
        check_values(schema, update, ANY_FINITE)
    except UpdateRefused as error:
        raise TaskFailed(f"after training the {error}", error.reason) from None


def _print_leaves(console: Console, schema: Schema, digest: bytes) -> None:
    console.print("What would leave this site, to the aggregator only:\n")
    console.print(_table((s.name, s.dtype, s.shape, s.nbytes) for s in schema.tensors))
    console.print(f"{schema.total_bytes} bytes, BLAKE3 {digest.hex()}")


def _print_kept(console: Console, kept: Entries) -> None:
    console.print("\nWhat would stay and last, since the task keeps it:\n")
    _print_stays(console, kept)


def _print_private(console: Console, private: Entries, again: Entries) -> None:
    """List it, and warn of what has other values where `model()` is called again."""
    from cairn.tasks.partial import differing

    console.print("\nWhat would stay, since the task does not exchange it:\n")
    _print_stays(console, private)
    if other := differing(private, again):
        console.print(
            f"\nWarning: with another seed model() gives {quoted(other[0])} other values, so that every owner"
            " and every round would begin with others; load them from a file or set a seed there.",
            markup=False,
        )


def _print_stays(console: Console, entries: Entries) -> None:
    from cairn.tasks.state_dict import facts_of

    rows = [(name, *facts_of(value)) for name, value in entries.items()]
    console.print(_table(rows))
    console.print(f"{sum(nbytes for *_, nbytes in rows)} bytes")


def _table(rows: Iterable[Row]) -> Table:
    table = Table("tensor", "type", "shape", "bytes")
    for column in table.columns:
        column.overflow = "fold"
    for name, dtype, sizes, nbytes in rows:
        shape = " x ".join(map(str, sizes)) or "scalar"
        table.add_row(escape(quoted(name)), dtype, shape, str(nbytes))
    return table


def _print_outcome(console: Console, part: str, outcome: "Outcome") -> None:
    console.print(f"\n{part}: {outcome.examples} examples")
    for name, value in sorted(outcome.metrics.items()):
        console.print(f"  {quoted(name)} = {value:.6g}", markup=False)


def _setting(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise UsageError(f"--set {text}: expected NAME=NUMBER, for example --set lr=0.1")
    return name, value
