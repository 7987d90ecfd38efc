"""What is checked of an owner's node, at its start and by `cairn doctor`. Runs none of a task's code."""

import os
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cryptography import x509

from cairn.doctor_identity import SOON
from cairn.errors import UsageError
from cairn.findings import Finding, attempted, fault, note, ok, warning
from cairn.identity import NodeName, Role
from cairn.ledger_files import OWNER_DATABASE
from cairn.looking import PinnedCoordinator, load_pinned_coordinator
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
        pin=settings.identity.aggregator,
        place=state_directory(settings.state),
        database=OWNER_DATABASE,
        peers=(
            Peer(
                Role.COORDINATOR, settings.coordinator, "coordinator", "listen", _pinned(settings)
            ),
            Peer(Role.AGGREGATOR, settings.aggregator, "aggregator", "listen_owners"),
        ),
        further=[*_coordinator_pin(settings), *_tasks(settings)],
    )


def _pinned(settings: OwnerSettings) -> PinnedCoordinator | None:
    """What is pinned of the coordinator; None where it cannot be used, which its check says."""
    file = settings.coordinator_certificate
    if file is None:
        return None
    try:
        return load_pinned_coordinator(file, settings.federation, datetime.now(UTC))
    except UsageError:
        return None


def _coordinator_pin(settings: OwnerSettings) -> list[Finding]:
    file = settings.coordinator_certificate
    if file is None:
        return []
    try:
        pinned = load_pinned_coordinator(file, settings.federation, datetime.now(UTC))
    except UsageError as error:
        return [fault("coordinator pin", f"coordinator_certificate: {error}")]
    certificates = x509.load_pem_x509_certificates(pinned.certificates)
    end = max(certificate.not_valid_after_utc for certificate in certificates)
    sentence = f"{file} pins the coordinator, valid until {end:%Y-%m-%d}"
    if end - datetime.now(UTC) > SOON:
        return [ok("coordinator pin", sentence)]
    cure = "ask whoever runs the coordinator for the present one, and append it"
    return [warning("coordinator pin", f"{sentence}: {cure}")]


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
