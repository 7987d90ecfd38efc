"""Forgives the failures of a task, once the owner's operator has looked into them. For `cairn reset`."""

from pathlib import Path

from cairn.errors import UsageError
from cairn.runtime.clock import Clock
from cairn.storage.database import StateDirectory, is_in_use
from cairn.storage.directory import OWNER_DATABASE, state_directory
from owner_node.records.ledger import OwnerLedger
from owner_node.settings import OwnerSettings


def reset(file: Path, task: str) -> str:
    """Record the reset in the ledger of this owner's file; returns what was forgiven, in a sentence.

    Raises UsageError where the node runs, or the task or its ledger is not there.
    """
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
        ledger = OwnerLedger(state, Clock())
        failures = ledger.past.budgets.failures(task)
        ledger.record("reset", {"task": task, "failures": failures})
    finally:
        state.close()
    return (
        f"Failures of {task} that are forgiven: {failures}. The ledger in {settings.state} says so."
    )
