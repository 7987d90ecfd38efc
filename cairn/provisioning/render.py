"""The text of the files that tell each node of a new federation what it must know. Pure."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from cairn.address import Address
from cairn.errors import UsageError
from cairn.provisioning.plan import FederationPlan, PlannedTask

_RISKY_FLOOR = (
    "# With a floor of 2, each of two owners can compute the other's update: it subtracts its own from\n"
    "# the average. Use 3 or more where owners do not trust each other.\n"
)
_NODE_FILES = """\
[identity]
certificate = "{name}/node.crt"       # who this node is, issued by the authority
key = "{name}/node.key"               # its private key; it never leaves this machine
authority = "{name}/authority.crt"    # who issues the certificates of this federation
"""
_PINNED = """\
aggregator = "{name}/aggregator.crt"  # the pinned certificate of the aggregator: no other is trusted
"""
_REVOKED = """\
# Certificates that are refused though they are valid, such as one whose key was stolen: the fingerprints, or those
# of the public keys, as `cairn identity` prints them. The same node is admitted under another certificate.
# revoked = ["sha256:..."]
"""
_LIMITS = """
# What is refused whatever a job says; these are the values where nothing else is said.
# largest_value = 1e9              # of a floating-point element of an update
# largest_integer = 9007199254740992
# largest_share = 0.5              # of the total weight, for one update: what is heavier counts so much
# largest_weight_ratio = 1000      # how many times the fewest examples of a job its most may be
# largest_model_megabytes = 8192
# memory_megabytes = 16384         # for open rounds; three quarters of the machine's where it is not said
# updates_in_flight = 2            # large updates taken at a time; the other owners wait in line
# lease_seconds = 30               # for so long an owner that is not heard of holds up a round
# patience_seconds = 3600          # with --once, how long a coordinator that does not call is waited for
# Averages over owners that overlap can be subtracted, so comparable releases count the same owners, or have
# none in common. Compared are those of the "same_base", where a training may leave without its metrics instead;
# or of the "same_model": with the same tensors, in every phase.
# compare_releases = "same_base"
"""
_EXAMPLE_TASK = """
# A task that this owner has read and approved. A job names it; the code and the data stay here.
# [tasks.NAME]
# file = "task.py"              # the task's code
# data = "data"                 # where its private data lies
# metrics = ["loss"]            # the metrics that may leave; any other is dropped
# min_examples = 1              # fewer examples than that: no update leaves
# max_rounds = 1000             # so many trainings, and so many evaluations, may be joined, over all jobs
# max_failures = 2              # so many of these may fail for a cause that may depend on the data: which ones
#                               # fail can tell a coordinator about it (`cairn doctor` says how much at most);
#                               # then the task is declined until you run `cairn reset`
# work_seconds = 60             # what comes of a round leaves so long after its model came, neither sooner nor
#                               # later, so that the running time tells nothing; work that takes longer fails
# clip = 1.0                    # an update further from its base is scaled down to this L2 norm
# encodings = ["whole"]         # how updates may travel: whole, bf16_deltas, int8_deltas; all, if unsaid
# environment = ["WARD_DB"]     # environment variables that the task gets beside the harmless ones
# sandbox = "on"                # no network, and no file but its code, its data and the libraries
# sandbox_reads = ["weights"]   # what else it may read in there
# [tasks.NAME.settings]         # what a job may set: [smallest, largest]
# lr = [0.0, 1.0]
"""
_METRICS_COMMENT = "  # the metrics that may leave; any other is dropped"
_MAX_ROUNDS_COMMENT = "  # so many trainings, and so many evaluations, over all jobs"
_MAX_FAILURES_COMMENT = (
    "  # declined once so many rounds failed for a cause that may depend on the data"
)
_WORK_SECONDS_COMMENT = (
    "  # what comes of a round leaves so long after its model came; work that takes longer fails"
)
_CLIP_COMMENT = "  # an update further from its base is scaled down to this L2 norm"
_ENCODINGS_COMMENT = "  # how updates may travel"
_ENVIRONMENT_COMMENT = "  # environment variables that the task gets beside the harmless ones"
_SANDBOX_COMMENT = "  # no network, and no file but its code, its data and the libraries"
_SANDBOX_READS_COMMENT = "  # what else it may read in there"


def aggregator_toml(plan: FederationPlan) -> str:
    return (
        f"# The aggregator of the federation {plan.name}: averages updates and releases only averages.\n"
        "# Paths are relative to this file.\n\n"
        f"federation = {_text(plan.name)}\n"
        'name = "aggregator"\n'
        f"listen_owners = {_text(Address.parse(plan.intake_address).listen)}"
        "        # owners push their updates here\n"
        f"listen_coordinators = {_text(Address.parse(plan.release_address).listen)}"
        "  # the coordinator collects averages here\n"
        'state = "aggregator/state"              # releases and the ledger; never one owner\'s update\n\n'
        "# The smallest number of owners whose average may be released.\n"
        f"{_floor(plan)}"
        "# Everybody who may take part. A change is read at once: who is removed is refused at its next call.\n"
        f"owners = [{', '.join(_text(owner) for owner in sorted(plan.owners))}]\n"
        f"{_REVOKED}"
        f"{_LIMITS}\n"
        f"{_NODE_FILES.format(name='aggregator')}"
        'signing_key = "aggregator/signing.key"    # signs manifests, receipts and statements\n'
    )


def coordinator_toml(plan: FederationPlan, signing_key: str) -> str:
    return (
        f"# The coordinator of the federation {plan.name}: owns the model and never sees one owner's update.\n"
        "# Paths are relative to this file.\n\n"
        f"federation = {_text(plan.name)}\n"
        'name = "coordinator"\n'
        f"listen = {_text(Address.parse(plan.coordinator_address).listen)}"
        "      # owners attend here\n"
        f"aggregator = {_text(plan.release_address)}  # where this node dials the aggregator\n"
        f"{_signing_key(signing_key)}\n"
        "# How long an aggregator that cannot be reached is waited for.\n"
        "# patience_seconds = 60\n\n"
        f"{_NODE_FILES.format(name='coordinator')}"
        f"{_PINNED.format(name='coordinator')}"
    )


def owner_toml(
    plan: FederationPlan, owner: str, signing_key: str, tasks: Mapping[str, PlannedTask]
) -> str:
    return (
        f"# The owner {owner} of the federation {plan.name}: its data and its updates stay its own.\n"
        "# Paths are relative to this file.\n\n"
        f"federation = {_text(plan.name)}\n"
        f"name = {_text(owner)}\n"
        f"coordinator = {_text(plan.coordinator_address)}  # where this node dials the coordinator\n"
        "# Where given, no other certificate is accepted of the coordinator than those in this file.\n"
        f'# coordinator_certificate = "{owner}/coordinator.crt"\n'
        f"aggregator = {_text(plan.intake_address)}   # where this node dials the aggregator\n"
        f"{_signing_key(signing_key)}\n"
        "# This owner's own ledger: what it decided, and everything that left. Keep it. Its finished update\n"
        "# lies there too until the round is over.\n"
        f'state = "{owner}/state"\n\n'
        "# This owner takes part only where at least so many owners are averaged.\n"
        f"{_floor(plan)}"
        "# Where given, so many of each average must be sure to be of these owners, and this one.\n"
        f"# trusted = [{', '.join(_text(name) for name in sorted({*plan.owners} - {owner}))}]\n"
        "# The largest share of the total weight that one update may count for; at most 0.5.\n"
        "# largest_share = 0.5\n"
        "# A model with a larger value than this is not trained on.\n"
        "largest_value = 1e9\n"
        "# Nor is a larger model fetched; whatever it says, a job must have exactly its task's tensors.\n"
        "# largest_model_megabytes = 8192\n"
        "# How long a coordinator that cannot be reached is waited for.\n"
        "# patience_seconds = 3600\n\n"
        f"{_NODE_FILES.format(name=owner)}"
        f"{_PINNED.format(name=owner)}"
        f"{''.join(_task(name, task, owner, plan.data) for name, task in tasks.items()) or _EXAMPLE_TASK}"
    )


def _floor(plan: FederationPlan) -> str:
    return f"{_RISKY_FLOOR if plan.floor < 3 else ''}floor = {plan.floor}\n"  # noqa: PLR2004 - see _RISKY_FLOOR


def _signing_key(text: str) -> str:
    return (
        "# What the aggregator signs is believed only under this key.\n"
        f"aggregator_signing_key = {_text(text)}\n"
    )


def _data(path: Path, owner: str, directory: Path | None) -> str:
    """Fill in `{owner}`, and `{data}` at the path's beginning."""
    text = os.fspath(path).replace("{owner}", owner)
    _, placeholder, rest = text.partition("{data}")
    if not placeholder:
        return text
    if directory is None:
        raise UsageError("the tasks file puts its data under {data}: name that directory (--data)")
    return f"{directory.absolute()}{rest}"


def _task(name: str, task: PlannedTask, owner: str, directory: Path | None) -> str:
    data = _data(task.data, owner, directory)
    lines = [
        f"\n[tasks.{_key(name)}]",
        f"file = {_text(os.fspath(task.file))}  # the task's code, which this owner approves",
        f"data = {_text(data)}  # where its private data lies",
    ]
    lines.append(f"metrics = {_texts(task.metrics)}{_METRICS_COMMENT}")
    lines.append(
        f"min_examples = {task.min_examples}  # fewer examples than that: no update leaves"
    )
    lines.append(f"{_said('max_rounds', task.max_rounds, '1000')}{_MAX_ROUNDS_COMMENT}")
    lines.append(f"{_said('max_failures', task.max_failures, '2')}{_MAX_FAILURES_COMMENT}")
    if task.work_seconds is not None:
        lines.append(f"work_seconds = {task.work_seconds!r}{_WORK_SECONDS_COMMENT}")
    if task.clip is not None:
        lines.append(f"clip = {task.clip!r}{_CLIP_COMMENT}")
    if task.encodings is not None:
        lines.append(f"encodings = {_texts(task.encodings)}{_ENCODINGS_COMMENT}")
    if task.environment:
        lines.append(f"environment = {_texts(task.environment)}{_ENVIRONMENT_COMMENT}")
    if task.sandbox != "off":
        lines.append(f"sandbox = {_text(task.sandbox)}{_SANDBOX_COMMENT}")
    if task.sandbox_reads:
        reads = _texts(map(os.fspath, task.sandbox_reads))
        lines.append(f"sandbox_reads = {reads}{_SANDBOX_READS_COMMENT}")
    if task.settings:
        lines.append(f"[tasks.{_key(name)}.settings]  # what a job may set: [smallest, largest]")
    lines += [f"{_key(key)} = [{low!r}, {high!r}]" for key, (low, high) in task.settings.items()]
    return "\n".join(lines) + "\n"


def _said(key: str, value: int | None, unsaid: str) -> str:
    """The line of a key, which is a comment where the owner's node takes the value that is not said."""
    return f"# {key} = {unsaid}" if value is None else f"{key} = {value}"


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _text(name)


def _texts(values: Iterable[str]) -> str:
    return f"[{', '.join(map(_text, values))}]"


def _text(value: str) -> str:
    """Quote for TOML, whose basic strings are those of JSON but for an unescaped DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
