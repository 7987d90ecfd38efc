"""A whole federation on this machine, for developing a task in a notebook or a test: what `cairn.sandbox` starts.

Certificates, an aggregator and every owner are real: processes of their own that speak mTLS on loopback. The coordinator is
this process, as for any other federation from Python.
"""

import ast
import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from cairn.errors import CairnError, UsageError
from cairn.provisioning.create import FederationPlan, usual_floor, write_federation
from cairn.provisioning.render import tasks_toml
from cairn.runtime.supervisor import begin, end, free_ports
from cairn.runtime.timeouts import SHUTDOWN_SECONDS
from cairn.tasks.settings import TaskSettings
from coordinator.api.federation import Federation
from coordinator.settings import CoordinatorSettings

Ranges = Mapping[str, Sequence[float]]
_LAST_LINES = 5
_MAX_FAILURES = 1000  # a task that is being written may fail often


def sandbox(
    task: str | Path,
    data: Mapping[str, str | Path] | Sequence[str | Path],
    *,
    settings: Ranges | None = None,
    metrics: Sequence[str] = (),
    name: str | None = None,
    folder: str | Path | None = None,
) -> "LocalFederation":
    """Start an aggregator and an owner for each part of the data, all on this machine.

    `task` is the owners' .py file, and the task is called as the file is, or `name`. `data` has where each owner's data
    lies: by the owners' names, or in a list, and then they are owner-1, owner-2 and so on. `settings` says for each
    number that a job may set the smallest and the largest, and `metrics` which metrics may leave. Everything is in
    `folder`, which is new or empty, and goes with the federation where that is not given.

    It ends with `stop`, with its `with` block, or with this process; the folder of a process that is killed stays. Raises
    UsageError for a mistake.
    """
    owners = _named(data)
    source = Path(task).absolute()
    _check_syntax(source)
    called = name or re.sub("[^a-z0-9._-]", "-", source.stem.lower())
    home = _free(Path(folder)) if folder is not None else Path(tempfile.mkdtemp(prefix="cairn-"))
    try:
        # First: it looks at the names, which become those of files.
        plan = _plan(home, tuple(owners))
        places = _linked(home / "data", owners)
        values = {
            "file": str(source),
            "data": str(places),
            "settings": dict(settings or {}),
            "metrics": metrics,
            "max_failures": _MAX_FAILURES,
        }
        written = tasks_toml({called: TaskSettings.of(values, f"the task {called}")})
        (home / "tasks.toml").write_text(written, encoding="utf-8")
        write_federation(home / "federation", plan)
        return LocalFederation(home, called, tuple(owners), is_temporary=folder is None)
    except BaseException:
        if folder is None:
            shutil.rmtree(home, ignore_errors=True)
        raise


class LocalFederation(Federation):
    """A federation whose nodes are processes of this machine. What they print is in `folder`/logs."""

    def __init__(
        self, folder: Path, task: str, owners: Sequence[str], *, is_temporary: bool
    ) -> None:
        settings = CoordinatorSettings.load(folder / "federation" / "coordinator.toml")
        super().__init__(settings, folder / "runs", task)
        self.folder = folder
        self._is_temporary = is_temporary
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        atexit.register(self.stop)
        self._start("aggregator", "aggregator_node")
        for owner in owners:
            self._start(owner, "owner_node")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log(self, node: str) -> str:
        """What a node has printed so far: `aggregator`, or an owner's name."""
        if node not in self.processes:
            raise UsageError(f"there is no node {node}; there are {', '.join(self.processes)}")
        return self._log(node).read_text(encoding="utf-8", errors="replace")

    def check(self) -> None:
        """Raise CairnError, with the last lines of its log, where a node has ended."""
        if not self.processes:
            raise UsageError("the federation was stopped: start another with cairn.sandbox")
        for node, process in self.processes.items():
            if process.poll() is not None:
                last = "\n".join(self.log(node).splitlines()[-_LAST_LINES:])
                raise CairnError(f"{node} has ended (exit code {process.returncode}):\n{last}")

    def stop(self) -> None:
        """End every node; a folder that was not given goes too, with its runs."""
        atexit.unregister(self.stop)
        end(list(self.processes.values()), SHUTDOWN_SECONDS)
        for process in self.processes.values():
            process.communicate()  # nothing: it closes the pipe that has kept the node
        self.processes.clear()
        if self._is_temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _log(self, node: str) -> Path:
        return self.folder / "logs" / f"{node}.log"

    def _start(self, node: str, module: str) -> None:
        log = self._log(node)
        log.parent.mkdir(exist_ok=True)
        config = self.folder / "federation" / f"{node}.toml"
        tied = [sys.executable, "-P", "-m", "coordinator.api.tied_node"]
        command = [*tied, module, "--config", str(config)]
        usual = {"CAIRN_LOG": "text", "CAIRN_LOG_LEVEL": "warning", "PYTHONUNBUFFERED": "1"}
        with log.open("ab") as output:
            environment = {**usual, **os.environ}
            self.processes[node] = begin(command, environment, output, subprocess.PIPE)


def _check_syntax(source: Path) -> None:
    """Raise UsageError for a file that is not there or is no Python: no owner could say so to a coordinator."""
    try:
        ast.parse(source.read_bytes(), source.name)
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from None
    except SyntaxError as error:
        raise UsageError(f"{source}, line {error.lineno}: {error.msg}") from None


def _named(data: Mapping[str, str | Path] | Sequence[str | Path]) -> dict[str, Path]:
    """Where the data of each owner lies. Raises UsageError for data that is not there."""
    if isinstance(data, str | Path):
        raise UsageError("data: should be a path for each owner, and is one path")
    places = (
        dict(data)
        if isinstance(data, Mapping)
        else {f"owner-{number}": place for number, place in enumerate(data, 1)}
    )
    found = {owner: Path(place).absolute() for owner, place in places.items()}
    for owner, place in found.items():
        if not place.exists():
            raise UsageError(f"the data of {owner}: there is no {place}")
    if len({place.suffix for place in found.values()}) > 1:
        raise UsageError("data: all owners' files should have the same suffix, and these differ")
    return found


def _free(folder: Path) -> Path:
    """The folder, which has nothing that could be overwritten, such as the data itself. Raises UsageError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: choose a new or an empty folder, or none")
    return folder.absolute()


def _linked(directory: Path, owners: Mapping[str, Path]) -> Path:
    """Link each owner's data under one name but for the owner's; returns that name, with {owner} in it."""
    directory.mkdir(parents=True, exist_ok=True)
    suffix = next((place.suffix for place in owners.values()), "")
    for owner, place in owners.items():
        (directory / f"{owner}{suffix}").symlink_to(place)
    return directory / f"{{owner}}{suffix}"


def _plan(home: Path, owners: tuple[str, ...]) -> FederationPlan:
    coordinator, intake, release = (f"localhost:{port}" for port in free_ports(3))
    return FederationPlan(
        name="sandbox",
        owners=owners,
        floor=usual_floor(len(owners)),
        coordinator_address=coordinator,
        intake_address=intake,
        release_address=release,
        tasks_file=home / "tasks.toml",
    )
