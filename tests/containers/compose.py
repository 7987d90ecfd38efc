"""The project's docker-compose.yml, run under a name of its own and always taken down again."""

import json
import os
import shutil
import subprocess
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, manual_seed, nn, optim, tensor

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "examples" / "tutorial"
COMPOSE_FILE = ROOT / "docker-compose.yml"
NODES = ("aggregator", "alice", "bob", "coordinator")
DOCUMENTED_RUN = ("run", "--rm", "--use-aliases", "coordinator")
DOCUMENTED_COPY = ("run", "--rm", "-T", "--no-deps", "coordinator", "cat")
MODEL = "/runs/tutorial/model.safetensors"
LONG_STEPS = 1000
SECONDS = 280.0  # a busy machine may take minutes to import PyTorch three times
DOCKER = shutil.which("docker") or "docker"


def docker(*arguments: str, seconds: float = SECONDS) -> str:
    """Run `docker` and return its stdout; its stderr is the test's."""
    return subprocess.check_output([DOCKER, *arguments], text=True, timeout=seconds)


class Project:
    """One run of the Compose file. `files` are further files that change it, as a user's would."""

    def __init__(self, name: str, *files: Path) -> None:
        self.name = f"cairn-test-{name}-{os.getpid()}"
        each = [part for file in (COMPOSE_FILE, *files) for part in ("--file", str(file))]
        self._command = [DOCKER, "compose", "--project-name", self.name, *each]
        self._command += ["--project-directory", str(ROOT)]

    def __call__(self, *arguments: str, seconds: float = SECONDS) -> "Ended":
        """Run `docker compose` with these arguments to its end."""
        ended = subprocess.run(
            [*self._command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=seconds,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr.decode(errors="replace"))

    def must(self, *arguments: str, seconds: float = SECONDS) -> str:
        """Run it and return its stdout; fail the test, with its stderr, where it fails."""
        ended = self(*arguments, seconds=seconds)
        assert ended.code == 0, f"docker compose {' '.join(arguments)}: {ended.stderr}"
        return ended.text

    def python(self, service: str, code: str) -> str:
        """Run Python code inside a running service's container."""
        return self.must("exec", "-T", service, "python", "-c", code)

    def file(self, path: str) -> bytes:
        """Copy a file of the run out, with the documented line."""
        ended = self(*DOCUMENTED_COPY, path)
        assert ended.code == 0, ended.stderr
        return ended.stdout

    def history(self) -> list[dict[str, Any]]:
        lines = self.file("/runs/tutorial/history.jsonl").decode().splitlines()
        return [json.loads(line) for line in lines]

    def exit_codes(self) -> dict[str, int]:
        """The exit code of every service whose container has ended."""
        lines = self.must("ps", "--all", "--format", "json").splitlines()
        states = [json.loads(line) for line in lines]
        return {s["Service"]: s["ExitCode"] for s in states if s["State"] == "exited"}

    def container(self, service: str) -> dict[str, Any]:
        """What the engine says of a service's container."""
        identity = self.must("ps", "--all", "--quiet", service).strip()
        container: dict[str, Any] = json.loads(docker("inspect", identity))[0]
        return container

    def wait_for_line(self, service: str, text: str, seconds: float = SECONDS) -> None:
        """Follow a service's log until a line has this text; fail where the log ends without it."""
        command = [*self._command, "logs", "--follow", "--no-color", "--no-log-prefix", service]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as log:
            deadline = threading.Timer(seconds, log.kill)
            deadline.start()
            try:
                assert log.stdout is not None
                assert any(text in line for line in log.stdout), f"{service} never said {text!r}"
            finally:
                deadline.cancel()
                log.kill()

    def wait_for_round(self, number: int, rounds: int) -> None:
        """Wait for the coordinator's line of a round, over all its starts."""
        deadline = time.monotonic() + SECONDS
        line = f"Round {number:{len(str(rounds))}}/{rounds}"
        while line not in self("logs", "--no-color", "coordinator").text:
            assert time.monotonic() < deadline, f"the coordinator never said {line!r}"
            time.sleep(0.2)

    def wait_until_ended(self, service: str, seconds: float = SECONDS) -> int:
        """Wait for a service's container to end; returns its exit code."""
        identity = self.must("ps", "--all", "--quiet", service).strip()
        return int(docker("wait", identity, seconds=seconds))

    @contextmanager
    def taken_down(self) -> Iterator["Project"]:
        """Remove every container, network and volume at the end; first show the logs of a failure."""
        try:
            yield self
        except BaseException as error:
            error.add_note(self("ps", "--all").text)
            error.add_note(self("logs", "--no-color", "--tail", "60").text)
            raise
        finally:
            self("kill")  # how a node ends when it is asked to is no claim here
            self("down", "--volumes", "--remove-orphans", "--timeout", "0")


class Ended:
    """How a command ended."""

    def __init__(self, code: int, stdout: bytes, stderr: str) -> None:
        self.code = code
        self.stdout = stdout
        self.stderr = stderr

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


def longer_job(directory: Path, rounds: int) -> Path:
    """A Compose file for the tutorial's job with so many, and longer, rounds, which its owners allow."""
    job = (TUTORIAL / "job.toml").read_text()
    for old, new in (("rounds = 10", f"rounds = {rounds}"), ("steps = 5", f"steps = {LONG_STEPS}")):
        assert old in job
        job = job.replace(old, new)
    assert tomllib.loads(job)["rounds"] == rounds
    tasks = (TUTORIAL / "tasks.toml").read_text()
    assert tasks.count("[tasks.tutorial]\n") == 1
    # A round that a dying node ends counts as well, and is done again.
    allowed = f"[tasks.tutorial]\nmax_rounds = {2 * rounds}\n"
    tasks = tasks.replace("[tasks.tutorial]\n", allowed)
    files = {"coordinator": ("job.toml", job), "certificates": ("tasks.toml", tasks)}
    return with_files(directory, files)


def unhurried_owners(directory: Path) -> Path:
    """A Compose file whose owners wait five seconds in each training after the first."""
    first = "def train(model, data, round):\n"
    code = (TUTORIAL / "task.py").read_text()
    assert first in code
    wait = "    if round.number > 1:\n        __import__('time').sleep(5)\n"
    slow = code.replace(first, first + wait)
    return with_files(directory, {"alice": ("task.py", slow), "bob": ("task.py", slow)})


def with_job(directory: Path, job: str) -> Path:
    """A Compose file that gives the coordinator this job instead of the tutorial's."""
    return with_files(directory, {"coordinator": ("job.toml", job)})


def with_files(directory: Path, files: Mapping[str, tuple[str, str]]) -> Path:
    """A Compose file that gives each service a file of this name and text instead of the tutorial's."""
    directory.chmod(0o755)
    services = {}
    for service, (name, text) in files.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o644)
        services[service] = {"volumes": [f"{directory / name}:/examples/tutorial/{name}:ro"]}
    file = directory / "changed.json"
    file.write_text(json.dumps({"services": services}))
    return file


def plain_model(rounds: int, steps: int) -> dict[str, Tensor]:
    """What the tutorial's own loop, in plain PyTorch and one process, makes of the same data."""
    bob = tensor([[0.0, 0.0], [0.0, 1.0]]), tensor([[0.0], [0.0]])
    alice = tensor([[1.0, 0.0], [1.0, 1.0]]), tensor([[1.0], [1.0]])
    manual_seed(1)
    model = nn.Linear(2, 1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(rounds):
        trained = []
        for inputs, targets in (bob, alice):
            model.load_state_dict(state)
            opt = optim.SGD(model.parameters(), lr=0.1)
            for _ in range(steps):
                opt.zero_grad()
                ((model(inputs) - targets) ** 2).sum().backward()
                opt.step()
            trained.append({name: value.clone() for name, value in model.state_dict().items()})
        state = {name: (trained[0][name] + trained[1][name]) / 2 for name in state}
    return state
