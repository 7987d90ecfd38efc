"""Fills in the templates of the files that tell each node of a new federation what it must know."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from cairn.address import Address
from cairn.config import Settings
from cairn.errors import UsageError
from cairn.provisioning.plan import FederationPlan
from cairn.tasks.settings import TaskSettings

_TEMPLATES = files("cairn.provisioning") / "templates"
_SAFE_FLOOR = 3
_RISKY = (
    "# With a floor of 2, each of two owners can compute the other's update: it subtracts its own from\n"
    "# the average. Use 3 or more where owners do not trust each other.\n"
)
# Every key of a task but its settings, in the order of the file, and what its line says of it.
TASK_COMMENTS = {
    "file": "the task's code, which this owner approves",
    "data": "where its private data lies",
    "metrics": "the metrics that may leave; any other is dropped",
    "min_examples": "fewer examples than that: no update leaves",
    "max_rounds": "so many trainings, and so many evaluations, over all jobs",
    "max_failures": "declined once so many rounds failed for a cause that may depend on the data",
    "work_seconds": "what comes of a round leaves so long after its model came; work that takes longer fails",
    "clip": "an update further from its base is scaled down to this L2 norm",
    "encodings": "how updates may travel",
    "contents": "what may leave",
    "rules": "by which the aggregator may combine updates",
    "optimizers": "by which it may step along the result",
    "min_cell": "statistics leave only for jobs that release no cell of fewer examples",
    "max_statistics": "so many times may a column leave for statistics, over all jobs",
    "max_epsilon": "the most that the releases of all jobs may tell of it; then only private_mean is taken part in",
    "max_delta": "at this delta",
    "private": "differential privacy of each record: at most this epsilon, over all rounds and jobs",
    "environment": "environment variables that the task gets beside the harmless ones",
    "sandbox": "no network, and no file but its code, its data and the libraries",
    "sandbox_reads": "what else it may read in there",
}
_ALWAYS_STATED = {"file", "data", "metrics", "min_examples"}
_SHOWN_UNSTATED = {"max_rounds", "max_failures"}  # as comments, with what the owner's node takes


def aggregator_toml(plan: FederationPlan) -> str:
    return _filled_in(
        "aggregator",
        federation=plan.name,
        listen_owners=_value(Address.parse(plan.intake_address).listen),
        listen_coordinators=_value(Address.parse(plan.release_address).listen),
        floor=_floor(plan),
        owners=_value(sorted(plan.owners)),
    )


def coordinator_toml(plan: FederationPlan, signing_key: str) -> str:
    return _filled_in(
        "coordinator",
        federation=plan.name,
        listen=_value(Address.parse(plan.coordinator_address).listen),
        aggregator=_value(plan.release_address),
        signing_key=signing_key,
        owners=_value(sorted(plan.owners)),
    )


def owner_toml(
    plan: FederationPlan, owner: str, signing_key: str, tasks: Mapping[str, TaskSettings]
) -> str:
    written = [_task(name, task, owner, plan.data) for name, task in tasks.items()]
    return _filled_in(
        "owner",
        federation=plan.name,
        owner=owner,
        coordinator=_value(plan.coordinator_address),
        aggregator=_value(plan.intake_address),
        signing_key=signing_key,
        floor=_floor(plan),
        others=_value(sorted({*plan.owners} - {owner})),
        tasks="\n\n".join(written) or _filled_in("example_task").rstrip(),
    )


def tasks_toml(tasks: Mapping[str, TaskSettings]) -> str:
    """The tables of a tasks file (`cairn.provisioning.plan.read_tasks`); `{owner}` may stand in a task's data."""
    return "\n\n".join(_task(name, task, "{owner}", None) for name, task in tasks.items()) + "\n"


def _filled_in(name: str, **values: str) -> str:
    template = (_TEMPLATES / f"{name}.toml").read_text(encoding="utf-8")
    return Template(template).substitute(values)


def _floor(plan: FederationPlan) -> str:
    return f"{_RISKY if plan.floor < _SAFE_FLOOR else ''}floor = {plan.floor}"


def _data(path: Path, owner: str, directory: Path | None) -> str:
    """Fill in `{owner}`, and `{data}` at the path's beginning."""
    text = os.fspath(path).replace("{owner}", owner)
    _, placeholder, rest = text.partition("{data}")
    if not placeholder:
        return text
    if directory is None:
        raise UsageError("the tasks file puts its data under {data}: name that directory (--data)")
    return f"{directory.absolute()}{rest}"


def _task(name: str, task: TaskSettings, owner: str, directory: Path | None) -> str:
    values = dict(task) | {"data": _data(task.data, owner, directory)}
    lines = [f"[tasks.{_key(name)}]"]
    for key, comment in TASK_COMMENTS.items():
        is_stated = key in task.model_fields_set and values[key] not in {(), "off"}
        if is_stated or key in _ALWAYS_STATED:
            lines.append(f"{key} = {_value(values[key])}  # {comment}")
        elif key in _SHOWN_UNSTATED:
            lines.append(f"# {key} = {_value(values[key])}  # {comment}")
    if task.settings:
        lines.append(f"[tasks.{_key(name)}.settings]  # what a job may set: [smallest, largest]")
    lines += [f"{_key(key)} = {_value(limits)}" for key, limits in task.settings.items()]
    return "\n".join(lines)


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: str | float | Path | Settings | Iterable[Any]) -> str:
    """A value as TOML has it. Its basic strings are those of JSON but for an unescaped DEL."""
    if isinstance(value, str | Path):
        return json.dumps(os.fspath(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Settings):
        return f"{{ {', '.join(f'{key} = {_value(part)}' for key, part in value)} }}"
    if isinstance(value, Iterable):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)
