"""Forgives the failures of a task, or drops what it has kept, as the owner's operator says. For `cairn reset`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cairn.errors import UsageError
from cairn.runtime.clock import Clock
from cairn.storage.database import StateDirectory, is_in_use
from cairn.storage.directory import OWNER_DATABASE, state_directory
from owner_node.records.ledger import OwnerLedger
from owner_node.settings import OwnerSettings
from owner_node.training.kept_tensors import FOLDER, files_besides


def reset(file: Path, task: str) -> str:
    """Record the reset in the ledger of this owner's file; returns what was forgiven, in a sentence.

    Raises UsageError where the node runs, or the task or its ledger is not there.
    """
    with _ledger_of(file, task) as (state, ledger):
        failures = ledger.past.budgets.failures(task)
        ledger.record("reset", {"task": task, "failures": failures})
    return f"Failures of {task} that are forgiven: {failures}. The ledger in {state} says so."


def drop_kept(file: Path, task: str) -> str:
    """Delete the kept tensors of the task, in all of its jobs; returns how many files that were, in a sentence.

    What no job goes on with is deleted as well. Nothing else changes: a job's next round begins with what `model()`
    returns. Raises UsageError as `reset` does, and where a file cannot be deleted.
    """
    with _ledger_of(file, task) as (state, ledger):
        rounds = ledger.past.kept_rounds
        paths = files_besides(state / FOLDER, rounds.all() - rounds.of_task(task))
        for path in paths:
            try:
                path.unlink()
            except OSError as error:
                raise UsageError(f"{path} cannot be deleted: {error.strerror}") from None
    return (
        f"Files with kept tensors of {task} that were deleted from {state / FOLDER}: {len(paths)}."
    )


@contextmanager
def _ledger_of(file: Path, task: str) -> Iterator[tuple[Path, OwnerLedger]]:
    """The state directory of an owner's file, whose node does not run, and the ledger in it."""
    settings = OwnerSettings.load(file)
    if task not in settings.tasks:
        known = ", ".join(sorted(settings.tasks)) or "none"
        raise UsageError(f"{file} has no task {task}; its tasks: {known}")
    if not (settings.state / OWNER_DATABASE).is_file():
        raise UsageError(f"{settings.state} has no ledger yet, so there is nothing to reset")
    try:
        runs = is_in_use(settings.state)
    except OSError as error:
        raise state_directory(settings.state).unusable(error) from None
    if runs:
        raise UsageError(
            f"the node of {file} is running, and only one process may write its ledger: stop the node, run this"
            " again, and start it"
        )
    state = StateDirectory(settings.state, OWNER_DATABASE)
    try:
        yield settings.state, OwnerLedger(state, Clock())
    finally:
        state.close()
