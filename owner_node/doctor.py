"""What is checked of an owner's node, at its start and by `cairn doctor`. Runs none of a task's code."""

import os
from collections.abc import Collection
from functools import partial
from pathlib import Path

from cairn.errors import UsageError
from cairn.findings import Finding, attempted, note
from cairn.identity import NodeName, Role
from cairn.ledger_files import OWNER_DATABASE
from cairn.place import state_directory
from cairn.preflight import Node, Peer
from cairn.task_loading import find_task
from owner_node.sandbox import HOLDS, Sandbox, check_hides, sandbox_for
from owner_node.settings import OwnerSettings, TaskSettings

_NO_SANDBOX = 'its code can open what this account can, this node\'s key and the network too; sandbox = "on" keeps it in'


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
        if task.sandbox == "on":
            secrets = (settings.identity.key, settings.state)
            findings += attempted("sandbox", partial(_sandbox, name, task, secrets))
        else:
            findings.append(note("sandbox", f"tasks.{name} has none: {_NO_SANDBOX}"))
    return findings


def sandbox_of(task: TaskSettings) -> Sandbox | None:
    """The sandbox that the task runs in. Raises UsageError where this machine can have none."""
    if task.sandbox == "off":
        return None
    return sandbox_for(task.file, task.data, task.sandbox_reads)


def _sandbox(name: str, task: TaskSettings, secrets: Collection[Path]) -> str:
    try:
        sandbox = sandbox_for(task.file, task.data, task.sandbox_reads)
        check_hides(sandbox, secrets)
    except UsageError as error:
        raise UsageError(f"tasks.{name}.sandbox: {error}") from None
    return f"tasks.{name} gets {HOLDS[sandbox.kind]}"


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
