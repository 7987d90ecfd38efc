"""`cairn demo`: an example on this machine as a real federation, every node a process, mTLS on loopback."""

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import click

from cairn.cli.errors import mistakes_explained
from cairn.errors import UsageError
from cairn.provisioning.create import write_federation
from cairn.provisioning.plan import FederationPlan
from cairn.runtime.quoting import quoted
from cairn.runtime.supervisor import begin, end, free_ports, interruptible
from cairn.runtime.timeouts import SHUTDOWN_SECONDS

_a_path = click.Path(path_type=Path)
_END_SECONDS = 3 * SHUTDOWN_SECONDS  # a node may have several peers to part from
_COLOURS = ("cyan", "magenta", "yellow", "blue", "green")


@dataclass(frozen=True)
class Demo:
    """What to run: an example's folder, its job file, the run's folder and what overrides the job."""

    example: Path
    job: Path
    out: Path
    initial_model: Path | None
    rounds: int | None

    @property
    def federation(self) -> Path:
        return self.out / "federation"


@click.command("demo")
@click.argument("name")
@click.option("--out", type=_a_path, metavar="DIR", help="The run's folder; by default runs/NAME.")
@click.option("--job", default="job.toml", show_default=True, help="A job file of the example.")
@click.option(
    "--initial-model",
    type=_a_path,
    metavar="F.safetensors",
    help="Start from this model instead of the job's.",
)
@click.option(
    "--rounds", type=click.IntRange(1, 1_000_000), metavar="N", help="Instead of the job's."
)
@click.option("--force", is_flag=True, help="Start anew where DIR holds an earlier demo.")
@mistakes_explained
def demo(
    *,
    name: str,
    out: Path | None,
    job: str,
    initial_model: Path | None,
    rounds: int | None,
    force: bool,
) -> None:
    """Run the example NAME: certificates, an aggregator, its owners and a coordinator.

    Every node is a process of its own on this machine, and every connection is mTLS. Leaves
    model.safetensors, history.jsonl and release.json in DIR. The exit code is the coordinator's.
    """
    example = example_folder(name)
    folder = out or Path("runs") / name
    if force:
        clear(folder)
    elif folder.exists() and any(folder.iterdir()) and not (folder / "federation").exists():
        raise UsageError(f"{folder} is not empty: choose another --out")
    if not (example / job).exists():
        raise UsageError(f"the example {name} has no {job}")
    sys.exit(run_demo(Demo(example, example / job, folder, initial_model, rounds)))


def example_folder(name: str) -> Path:
    """Find an example by its name. Raises UsageError that lists the names there are."""
    here = Path(__file__).parents[1]  # the package `cairn`
    places = [here / "examples", here.parent / "examples"]  # installed, or in a checkout
    found = {path.parent.name: path.parent for place in places for path in place.glob("*/job.toml")}
    if name not in found:
        raise UsageError(f"there is no example {name}; there are {', '.join(sorted(found))}")
    return found[name]


def run_demo(demo: Demo) -> int:
    """Run the example to its end and return the coordinator's exit code.

    A run that was cut short goes on. Ctrl-C and SIGTERM stop every process that was started.
    """
    if not demo.federation.exists():
        _prepare(demo)
    owners = tomllib.loads(demo.job.read_text(encoding="utf-8"))["owners"]
    nodes = _Nodes(demo.out / "logs")
    with interruptible():
        try:
            config = demo.federation
            nodes.start("aggregator", "aggregator_node", "--config", f"{config}/aggregator.toml")
            for owner in owners:
                nodes.start(owner, "owner_node", "--config", f"{config}/{owner}.toml")
            code = nodes.start("coordinator", "coordinator", *_coordinator_arguments(demo)).wait()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is stopping already
            nodes.stop()
            click.echo(
                f"Stopped. The checkpoint is in {demo.out}; the same command goes on from it"
            )
            return 130
        nodes.stop()
    if code == 0:
        _report(demo)
    return code


def _prepare(demo: Demo) -> None:
    data = demo.out.absolute() / "data"
    prepare = demo.example / "prepare.py"
    if prepare.exists() and subprocess.run([sys.executable, prepare, data], check=False).returncode:
        raise UsageError(f"{prepare} failed, so there is no data; what it said stands above")
    owners = tomllib.loads(demo.job.read_text(encoding="utf-8"))["owners"]
    coordinator, intake, release = (f"localhost:{port}" for port in free_ports(3))
    plan = FederationPlan(
        name=demo.example.name.replace("_", "-"),
        owners=tuple(owners),
        floor=min(3, len(owners)),
        coordinator_address=coordinator,
        intake_address=intake,
        release_address=release,
        tasks_file=demo.example / "tasks.toml",
        data=data,
    )
    write_federation(demo.federation, plan)


def _coordinator_arguments(demo: Demo) -> list[str]:
    arguments = ["run", str(demo.job), "--config", f"{demo.federation}/coordinator.toml"]
    arguments += ["--out", str(demo.out)]
    if demo.initial_model is not None:
        arguments += ["--initial-model", str(demo.initial_model)]
    if demo.rounds is not None:
        arguments += ["--rounds", str(demo.rounds)]
    return arguments


def _report(demo: Demo) -> None:
    report = demo.example / "report.py"
    if report.exists():
        click.echo()
        sys.stdout.flush()
        subprocess.run([sys.executable, report, demo.out / "model.safetensors"], check=False)


class _Nodes:
    """The processes of a demo, each with its lines marked by its name."""

    def __init__(self, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._processes: list[subprocess.Popen[bytes]] = []
        self._readers: list[threading.Thread] = []
        self._environment = {
            "CAIRN_LOG": "text",
            "CAIRN_LOG_LEVEL": "warning",
            "PYTHONUNBUFFERED": "1",
            **os.environ,
        }

    def start(self, name: str, module: str, *arguments: str) -> "subprocess.Popen[bytes]":
        command = [
            sys.executable,
            "-P",
            "-m",
            module,
            *arguments,
        ]  # -P: no module of the folder it runs in
        process = begin(command, self._environment, subprocess.PIPE)
        colour = _COLOURS[len(self._processes) % len(_COLOURS)]
        reader = threading.Thread(target=self._show, args=(name, colour, process.stdout))
        reader.start()
        self._processes.append(process)
        self._readers.append(reader)
        return process

    def stop(self) -> None:
        """End the nodes and wait for them and their last lines.

        The last one first: the coordinator still has the aggregator end its round.
        """
        end(self._processes[-1:], _END_SECONDS)
        end(self._processes[:-1], _END_SECONDS)
        for reader in self._readers:
            reader.join()

    def _show(self, name: str, colour: str, output: IO[bytes]) -> None:
        mark = click.style(f"{name:>12} | ", fg=colour)
        with (self._logs / f"{name}.log").open("a", encoding="utf-8") as log:
            for line in io.TextIOWrapper(output, encoding="utf-8", errors="replace"):
                log.write(line)
                click.echo(mark + quoted(line.rstrip("\n")))


def clear(out: Path) -> None:
    """Remove what an earlier demo left in `out`, and nothing else. Raises UsageError for other files."""
    ours = {"federation", "data", "logs", "model.safetensors", "release.json", "evaluation.json"}
    ours |= {
        "best.safetensors",
        "best.json",
        "statistics.json",
        "history.jsonl",
        "checkpoint.json",
        "ledger.jsonl",
        "ledger_head.json",
        ".lock",
    }
    others = sorted({path.name for path in out.iterdir()} - ours) if out.exists() else []
    if others:
        raise UsageError(f"{out} holds {others[0]}, which is not a demo's: choose another --out")
    shutil.rmtree(out, ignore_errors=True)
