"""`cairn reset`."""

import importlib
from pathlib import Path

import click

from cairn.cli.errors import mistakes_explained
from cairn.runtime.quoting import say


@click.command("reset")
@click.argument("file", metavar="OWNER.toml", type=click.Path(path_type=Path))
@click.argument("task")
@click.option("--kept", is_flag=True, help="Drop the kept tensors of TASK, and forgive nothing.")
@mistakes_explained
def reset(*, file: Path, task: str, kept: bool) -> None:
    """Forgive the failures of TASK at the owner of OWNER.toml, whose node must be stopped.

    An owner declines a task (FAILURES_SPENT) once max_failures of its rounds have failed for causes that may
    depend on its data: which rounds fail can tell a coordinator about that data. Look into the causes first, in
    the node's log or by `cairn ledger`: models that were made to fail look like a coordinator's attack. The
    ledger records the reset. Rounds that were used up stay so: for more of them, raise max_rounds in the file.

    With --kept it deletes the tensors that the task keeps from round to round at this owner (keeps, in
    cairn.Task): its jobs go on with those that its model() returns. Failures, budgets and the ledger stay as they
    are.
    """
    # A role's module, which this package does not import.
    role = importlib.import_module("owner_node.reset")
    say(role.drop_kept(file, task) if kept else role.reset(file, task))
