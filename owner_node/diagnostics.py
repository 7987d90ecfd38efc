"""What is checked of an owner's node, at its start and by `cairn doctor`. Runs none of a task's code."""

import math
import os
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cairn.diagnostics.findings import Finding, attempted, fault, note, ok, warning
from cairn.diagnostics.identity import SOON
from cairn.diagnostics.preflight import NodeChecks, Peer
from cairn.errors import InvalidMessage, UsageError
from cairn.identity.names import NodeName, Role
from cairn.identity.trust import PeerTrust, load_pinned
from cairn.ledger.files import read_ledger
from cairn.storage.directory import OWNER_DATABASE, state_directory
from cairn.tasks.loader import find_task
from cairn.tasks.settings import TaskSettings
from cairn.v1 import round_pb2 as pb
from owner_node.privacy_limit import privacy_limit_of
from owner_node.records.budgets import Budgets, bits_told
from owner_node.records.privacy_spent import PrivacySpent
from owner_node.sandbox.choice import HOLDS, Sandbox, check_hides, sandbox_for
from owner_node.settings import OwnerSettings

_NO_SANDBOX = 'its code can open what this account can, this node\'s key and the network too; sandbox = "on" keeps it in'

_CLOCK = {
    True: "and its running time nothing",
    False: "beside what its running time tells, which work_seconds would hide",
}


def node_of_file(path: Path) -> NodeChecks:
    """Read the file. Raises UsageError, with a line for every key that is wrong."""
    settings = OwnerSettings.load(path)
    node = node_of(settings)
    return replace(node, further=[*node.further, *_spent(settings, path)])


def node_of(settings: OwnerSettings) -> NodeChecks:
    coordinator, findings = _coordinator_pin(settings)
    return NodeChecks(
        name=NodeName(settings.federation, Role.OWNER, settings.name),
        identity=settings.identity,
        config=settings.read_from,
        pin=settings.identity.aggregator,
        place=state_directory(settings.state),
        database=OWNER_DATABASE,
        peers=(
            Peer(Role.COORDINATOR, settings.coordinator, "coordinator", "listen", coordinator),
            Peer(Role.AGGREGATOR, settings.aggregator, "aggregator", "listen_owners"),
        ),
        further=[*findings, *_tasks(settings)],
    )


def _coordinator_pin(settings: OwnerSettings) -> tuple[PeerTrust | None, list[Finding]]:
    """What is pinned of the coordinator, and what is found of it; None where nothing is, or it cannot be used."""
    file, now = settings.coordinator_certificate, datetime.now(UTC)
    if file is None:
        return None, []
    try:
        pinned = load_pinned(file, Role.COORDINATOR, settings.federation, now)
    except UsageError as error:
        return None, [fault("coordinator pin", f"coordinator_certificate: {error}")]
    sentence = f"{file} pins the coordinator, valid until {pinned.end:%Y-%m-%d}"
    if pinned.end - now > SOON:
        return pinned, [ok("coordinator pin", sentence)]
    cure = "ask whoever runs the coordinator for the present one, and append it"
    return pinned, [warning("coordinator pin", f"{sentence}: {cure}")]


def _tasks(settings: OwnerSettings) -> list[Finding]:
    if not settings.tasks:
        return [note("task", "there is none in the file: every invitation is declined")]
    findings: list[Finding] = []
    for name, task in settings.tasks.items():
        findings += attempted("task", partial(_code, name, task.file))
        findings += attempted("task", partial(_data, name, task.data))
        findings.append(ok("task", _allowed(name, task)))
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


def _spent(settings: OwnerSettings, file: Path) -> list[Finding]:
    """What each task can tell a coordinator, and what it has told, by this owner's ledger."""
    budgets, told = Budgets(), PrivacySpent()
    database = settings.state / OWNER_DATABASE
    try:
        for entry in read_ledger(database) if database.exists() else ():
            budgets.note(entry.kind, entry.facts)
            told.note(entry.kind, entry.facts)
    except (InvalidMessage, OSError, KeyError, ValueError, TypeError):
        return [note("failures", "not counted: this owner's ledger cannot be read")]
    return [*_failures(settings, file, budgets), *_privacy(settings, told)]


def _privacy(settings: OwnerSettings, told: PrivacySpent) -> list[Finding]:
    """What noisy releases have told of the tasks that have a limit for it."""
    findings = []
    for name, task in settings.tasks.items():
        limit = privacy_limit_of(task)
        if limit is None:
            continue
        sentence = (
            f"task {name} has told epsilon {limit.spent(told.rho(name)):.3g} of {limit.epsilon:g} (delta {limit.delta:g})"
            f" of this owner, in {told.releases(name)} releases with noise"
        )
        if plain := told.without_noise(name):
            sentence += (
                f"; no epsilon covers the {plain} updates that left for releases without noise"
            )
        findings.append((warning if plain else ok)("privacy", sentence))
    return findings


def _failures(settings: OwnerSettings, file: Path, budgets: Budgets) -> list[Finding]:
    """What the failures of each task can tell a coordinator, and how many are left."""
    findings = []
    for name, task in settings.tasks.items():
        failures = budgets.failures(name)
        if failures >= task.max_failures:
            sentence = (
                f"the {failures} failures of task {name} are spent, so every job of it is declined: look into them"
                f" with `cairn ledger {settings.state}`, stop the node and run `cairn reset {file} {name}`"
            )
            findings.append(warning("failures", sentence))
            continue
        bits = bits_told(task.max_rounds, task.max_failures, len(task.metrics))
        trained = budgets.taken(name, pb.PHASE_TRAIN)
        evaluated = budgets.taken(name, pb.PHASE_EVALUATE)
        sentence = (
            f"what failures can tell a coordinator of task {name}: at most {math.ceil(bits)} bits,"
            f" {_CLOCK[task.work_seconds is not None]};"
            f" used are {trained} of {task.max_rounds} trainings, {evaluated} of {task.max_rounds} evaluations and"
            f" {failures} of {task.max_failures} failures"
        )
        findings.append(ok("failures", sentence))
    return findings


def _code(name: str, file: str) -> str:
    try:
        find_task(file)
    except UsageError as error:
        raise UsageError(f"tasks.{name}.file: {error}") from None
    return f"tasks.{name}.file is {file}"


def _allowed(name: str, task: TaskSettings) -> str:
    """What the three lists allow, less what max_epsilon and private rule out."""
    rules, contents = task.rules, task.contents
    narrowed = ""
    if task.max_epsilon is not None:
        rules = ("private_mean",)
        contents = tuple(word for word in contents if word != "statistics")
        narrowed = " (max_epsilon)"
    if task.private is not None:
        contents = tuple(word for word in contents if word == "weights")
        narrowed += " (private)"
    lists = {"contents": contents, "rules": rules, "optimizers": task.optimizers}
    return f"tasks.{name} allows{narrowed} " + "; ".join(
        f"{key} {', '.join(words) or 'none'}" for key, words in lists.items()
    )


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
