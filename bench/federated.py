"""Runs the work through a real federation: every node a process, mTLS, ledgers and digests on."""

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Processes
from bench.watch import Watch
from bench.work import MEGABYTE, Work, check_model, write_work
from cairn.protocol.words import RULES
from cairn.runtime.supervisor import free_ports

_LEASE_SECONDS = 600
_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Rounds:
    """What the rounds of a run took.

    `seconds` are those of the coordinator's history; `wall_seconds` go from the end of one round to that of
    the next, so that what the coordinator does in between, such as its checkpoint, is in them.
    """

    first_seconds: float
    seconds: tuple[float, ...]
    wall_seconds: tuple[float, ...]
    cpu_seconds: float
    total_peak_bytes: int
    peak_bytes: dict[str, int]

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def median_wall_seconds(self) -> float:
        return statistics.median(self.wall_seconds)


def run_federation(home: Path, work: Work) -> Rounds:
    """Run the work in an empty folder. Raises BenchFailed where a node fails or the model is wrong."""
    with federation(home, work) as (nodes, commands):
        nodes.start("aggregator", commands["aggregator"])
        nodes.start("coordinator", commands["coordinator"])
        return follow_job(nodes, home / "out", work)


@contextmanager
def federation(home: Path, work: Work) -> Iterator[tuple[Processes, Mapping[str, list[str]]]]:
    """The files of the work and its federation, whose owners run; and the commands of all nodes."""
    home.mkdir(parents=True, exist_ok=True)
    write_work(home, work)
    _write_nodes(home / "federation", home / "tasks.toml", work)
    commands = commands_of(home, work.names)
    with Processes(home / "logs", {"CAIRN_LOG": "text"}) as nodes:
        for name in work.names:
            nodes.start(name, commands[name])
        yield nodes, commands


def follow_job(nodes: Processes, out: Path, work: Work) -> Rounds:
    """Wait until the coordinator ends. Raises BenchFailed as `run_federation` does."""
    watch = Watch(nodes.pids(), out / "history.jsonl", last=1 + work.rounds)
    while not nodes.has_ended("coordinator"):
        watch.look()
    check_model(out / "model.safetensors", work)
    lines = (out / "history.jsonl").read_text(encoding="utf-8").splitlines()
    first, *seconds = (float(json.loads(line)["seconds"]) for line in lines)
    timed = tuple(seconds[: work.rounds])
    return Rounds(
        first_seconds=first,
        seconds=timed,
        wall_seconds=watch.seconds_between_rounds() or timed,
        cpu_seconds=watch.cpu_seconds_per_round(),
        total_peak_bytes=watch.memory.total_bytes,
        peak_bytes=watch.memory.role_bytes,
    )


def commands_of(home: Path, owners: Sequence[str]) -> dict[str, list[str]]:
    """The command of each node of the federation and the job in `home`, by its name."""
    python = [sys.executable, "-m"]
    files = home / "federation"
    nodes = {"aggregator": "aggregator_node"} | dict.fromkeys(owners, "owner_node")
    commands = {
        name: [*python, module, "--config", f"{files}/{name}.toml"]
        for name, module in nodes.items()
    }
    run = [*python, "coordinator", "run", f"{home}/job.toml", "--out", f"{home}/out"]
    commands["coordinator"] = [*run, "--config", f"{files}/coordinator.toml"]
    return commands


def _write_nodes(directory: Path, tasks: Path, work: Work) -> None:
    from cairn.provisioning.create import FederationPlan, write_federation

    coordinator, intake, release = (f"localhost:{port}" for port in free_ports(3))
    plan = FederationPlan(
        name="bench",
        owners=work.names,
        floor=work.floor,
        coordinator_address=coordinator,
        intake_address=intake,
        release_address=release,
        tasks_file=tasks,
        data=tasks.parent,
    )
    write_federation(directory, plan)
    toml = directory / "aggregator.toml"
    # No owner of this run is lost, and the largest model that a job may have is this one.
    megabytes = work.megabytes * MEGABYTE // _MEBIBYTE + 1
    lines = {
        "lease_seconds": _LEASE_SECONDS,
        "largest_model_megabytes": megabytes,
        "rules": json.dumps(list(RULES)),
    }
    ours = "".join(f"\n{key} = {value}" for key, value in lines.items()) + "\nstate = "
    toml.write_text(toml.read_text(encoding="utf-8").replace("\nstate = ", ours), encoding="utf-8")
