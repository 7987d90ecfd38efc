"""Measures what each fault costs: a node is killed in the second round, and the job is timed against a run without.

Three owners train for a known time. The clock runs from the end of the first round to that of the last, so that
the start of the processes does not count. The file of each node is that of `cairn init`, with its own lease.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.failure import BenchFailed
from bench.federated import commands_of
from bench.figures import Figures
from bench.processes import Processes
from bench.report import Table, write_section
from cairn.runtime.supervisor import free_ports

TRAINING_SECONDS = 3.0
ROUNDS = 4
RESTART_LIMIT_SECONDS = 15.0  # what a killed aggregator or coordinator may cost after its restart
_OWNERS = ("owner1", "owner2", "owner3")
_FLOOR = 2
_FREE_RUNS = 3
_MOMENT_SECONDS = 0.01
_PATIENCE_SECONDS = 300
_LATE_SECONDS = 20.0

_TASK = f"""
import time
from torch import nn
import cairn


def train(model, data, round):
    time.sleep({TRAINING_SECONDS})
    model.bias.data += 1  # releases of one base must count the same owners, so each needs a base of its own


task = cairn.Task(
    model=lambda: nn.Linear(64, 64), data=lambda site: cairn.Data(train=0, examples=1), train=train
)
"""
_TASKS = """
[tasks.faults]
file = "task.py"
data = "."
"""


@dataclass(frozen=True)
class Fault:
    """A node is killed at a point, and started again so many seconds later, or never."""

    node: str
    when: str
    point: str
    time: int = 2  # that the node comes to the point: in the second round
    pause_seconds: float | None = 0.0

    @property
    def again(self) -> str:
        if self.pause_seconds is None:
            return "never"
        return f"after {self.pause_seconds:g} s" if self.pause_seconds else "at once"


FAULTS = (
    Fault("owner1", "while it trains", "owner.fetch.complete"),
    Fault("owner1", "when it has trained", "owner.train.done"),
    Fault("owner1", "while it pushes", "owner.push.partial"),
    Fault("owner1", "after its push", "owner.push.accepted"),
    Fault("owner1", "while it trains", "owner.fetch.complete", 2, None),
    Fault("owner1", "while it pushes", "owner.push.partial", 2, None),
    Fault("owner1", "after its push", "owner.push.accepted", 2, None),
    Fault("aggregator", "when it has opened a round", "aggregator.open.before_reply"),
    Fault("aggregator", "while owners train", "aggregator.join.before_reply", 5),
    Fault("aggregator", "while owners push", "aggregator.push.complete", 5),
    Fault("aggregator", "before a release is recorded", "aggregator.release.before_commit"),
    Fault("aggregator", "after a release is recorded", "aggregator.release.after_commit"),
    Fault("aggregator", "while owners push", "aggregator.push.complete", 5, _LATE_SECONDS),
    Fault("coordinator", "before it opens a round", "coordinator.open.before_call"),
    Fault("coordinator", "while owners fetch", "coordinator.fetch.partial", 5),
    Fault("coordinator", "while it collects", "coordinator.release.received"),
    Fault("coordinator", "before its checkpoint", "coordinator.checkpoint.before"),
    Fault("coordinator", "while owners fetch", "coordinator.fetch.partial", 5, _LATE_SECONDS),
)


@dataclass(frozen=True)
class Timed:
    """Seconds from the end of the first round to that of the last, and those during which the node was gone."""

    seconds: float
    gone_seconds: float = 0.0


def measure_faults() -> list[Figures]:
    """Measure every fault. Raises BenchFailed where a job does not end, or no fault came."""
    free = statistics.median(_run(None).seconds for _ in range(_FREE_RUNS))
    print(f"without a fault: {free:.1f} s", file=sys.stderr)
    measured = []
    for fault in FAULTS:
        measured.append(_figures(fault, _run(fault), free))
        print(*measured[-1].values(), file=sys.stderr)
    return measured


def write_faults(measured: list[Figures]) -> None:
    table = Table(
        "node", "killed", "started again", "lost, s", "of it until it was back, s", "after, s"
    )
    for each in measured:
        seconds = (each["lost_seconds"], each["gone_seconds"], each["after_seconds"])
        table.add(each["node"], each["killed"], each["again"], *seconds)
    write_section("faults", [str(table)])


def _figures(fault: Fault, timed: Timed, free_seconds: float) -> Figures:
    lost = timed.seconds - free_seconds
    return {
        "node": fault.node.rstrip("1"),
        "killed": fault.when,
        "again": fault.again,
        "lost_seconds": round(lost, 1),
        "gone_seconds": round(timed.gone_seconds, 1),
        "after_seconds": round(lost - timed.gone_seconds, 1),
    }


def _run(fault: Fault | None) -> Timed:
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        home = Path(directory)
        _write(home)
        commands = commands_of(home, _OWNERS)
        with Processes(home / "logs", {"CAIRN_LOG": "text"}) as nodes:
            for name, command in commands.items():
                armed = _armed(fault) if fault and fault.node == name else {}
                nodes.start(name, command, armed)
            return _time(nodes, home / "out/history.jsonl", fault, commands)


def _time(
    nodes: Processes, history: Path, fault: Fault | None, commands: Mapping[str, list[str]]
) -> Timed:
    """Follow the job, and start again what was killed."""
    begun = died = back = 0.0
    is_restarted = fault is None or fault.pause_seconds is None
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (rounds := _rounds(history)) < ROUNDS:
        now = time.monotonic()
        if now > deadline:
            raise BenchFailed(f"{fault}: the job did not end\n{nodes.last_lines('coordinator')}")
        if rounds and not begun:
            begun = now
        if fault and not died and nodes.code_of(fault.node) is not None:
            died = now
        if fault and died and not is_restarted and now >= died + (fault.pause_seconds or 0):
            nodes.start(fault.node, commands[fault.node])
            is_restarted, printed = True, nodes.log(fault.node).stat().st_size
        if fault and died and is_restarted and not back and fault.pause_seconds is not None:
            back = now if _is_back(nodes.log(fault.node), printed) else 0.0
        time.sleep(_MOMENT_SECONDS)
    if fault and died < begun:
        raise BenchFailed(f"{fault} did not come, or before the second round")
    return Timed(time.monotonic() - begun, back - died if back else 0.0)


def _is_back(log: Path, printed: int) -> bool:
    """Whether a node that was started again has said anything: then it has read its files."""
    return log.stat().st_size > printed


def _armed(fault: Fault) -> dict[str, str]:
    return {
        "CAIRN_FAILPOINTS": f"{fault.point}=kill@{fault.time}",
        "CAIRN_FAILPOINTS_IN": "bench",
    }


def _rounds(history: Path) -> int:
    return len(history.read_text(encoding="utf-8").splitlines()) if history.exists() else 0


def _write(home: Path) -> None:
    from cairn.provisioning.create import FederationPlan, write_federation

    (home / "task.py").write_text(_TASK, encoding="utf-8")
    (home / "tasks.toml").write_text(_TASKS, encoding="utf-8")
    job = {
        "name": "faults",
        "task": "faults",
        "model": "task.py",
        "rounds": ROUNDS,
        "owners": _OWNERS,
        "floor": _FLOOR,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in job.items()]
    (home / "job.toml").write_text("\n".join(lines), encoding="utf-8")
    coordinator, intake, release = (f"localhost:{port}" for port in free_ports(3))
    plan = FederationPlan(
        name="bench",
        owners=_OWNERS,
        floor=_FLOOR,
        coordinator_address=coordinator,
        intake_address=intake,
        release_address=release,
        tasks_file=home / "tasks.toml",
        data=home,
    )
    write_federation(home / "federation", plan)
