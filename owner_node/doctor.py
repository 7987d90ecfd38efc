"""What is checked of an owner's node, at its start and by `cairn doctor`. Runs none of a task's code."""

import os
from functools import partial
from pathlib import Path

from cairn.errors import UsageError
from cairn.findings import Finding, attempted, note
from cairn.identity import NodeName, Role
from cairn.ledger_files import OWNER_DATABASE
from cairn.place import state_directory
from cairn.preflight import Node, Peer
from cairn.task_loading import find_task
from owner_node.settings import OwnerSettings


def node_of_file(path: Path) -> Node:
    """Read the file. Raises UsageError, with a line for every key that is wrong."""
    return node_of(OwnerSettings.load(path))


def node_of(settings: OwnerSettings) -> Node:
    return Node(
        name=NodeName(settings.federation, Role.OWNER, settings.name),
        identity=settings.identity,
        config=settings.read_from,
        pin=settings.identity.aggregator,
        place=state_directory(settings.state),
        database=OWNER_DATABASE,
        peers=(
            Peer(Role.COORDINATOR, settings.coordinator, "coordinator", "listen"),
            Peer(Role.AGGREGATOR, settings.aggregator, "aggregator", "listen_owners"),
        ),
        further=_tasks(settings),
    )


def _tasks(settings: OwnerSettings) -> list[Finding]:
    if not settings.tasks:
        return [note("task", "there is none in the file: every invitation is declined")]
    findings: list[Finding] = []
    for name, task in settings.tasks.items():
        findings += attempted("task", partial(_code, name, task.file))
        findings += attempted("task", partial(_data, name, task.data))
    return findings


def _code(name: str, file: str) -> str:
    try:
        find_task(file)
    except UsageError as error:
        raise UsageError(f"tasks.{name}.file: {error}") from None
    return f"tasks.{name}.file is {file}"


def _data(name: str, path: Path) -> str:
    """Look whether it is there; what is in it is for the task alone."""
    try:
        path.stat()
    except OSError as error:
        raise UsageError(
            f"tasks.{name}.data: there is no {path} ({error.strerror}); correct the path in this owner's"
            " file, or put the data there"
        ) from None
    if not os.access(path, os.R_OK):
        raise UsageError(
            f"tasks.{name}.data: this account may not read {path}; have its owner run `chmod` or `chown`"
        )
    return f"tasks.{name}.data is {path}"
