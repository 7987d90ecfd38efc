"""A federation of real processes with a task whose training the test can hold and whose result it knows."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from cairn.provisioning.create import FederationPlan, write_federation
from tests.scenarios.processes import Node, free_port, until
from tests.warm.start import BIN

# Halves the weights and adds this owner's own value. Where a FIFO of the round's number lies beside
# the data, it first waits until the test, which opens the other end, closes it. It writes down that it ran.
TASK = """
import os
import sys
from pathlib import Path

import torch
from torch import nn

import cairn


def model():
    return nn.Linear(2, 1)


def data(site):
    return cairn.Data(train=site.data, examples=1)


def train(model, data, round):
    with (data.train / "runs").open("a") as runs:
        runs.write(f"{round.number}\\n")
    gate = data.train / f"round-{round.number}"
    if gate.exists():
        gate.read_bytes()
    mode = (data.train / "mode").read_text()
    if mode == "raise":
        raise RuntimeError("patient 471122330099 has no blood pressure")
    if mode == "shape":
        model.weight = nn.Parameter(torch.zeros(2, 2))
        return {}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5).add_(float((data.train / "value").read_text()))
            if mode == "nan":
                parameter.fill_(float("nan"))
    return {"value": float((data.train / "value").read_text())}


task = cairn.Task(model=model, data=data, train=train)
"""
TASKS = """
[tasks.halving]
file = "task.py"
data = "{data}/{owner}"
metrics = ["value"]
max_failures = 1000

[tasks.halving.settings]
lr = [0.0, 1.0]
"""


class Federation:
    """Files and processes of one federation. `close` ends whatever still runs."""

    kind: type[Node] = Node

    def __init__(
        self, home: Path, values: Mapping[str, float], *, floor: int, lease_seconds: int = 15
    ) -> None:
        self.home = home
        self.values = dict(values)
        self.files = home / "federation"
        self.out = home / "out"
        self.nodes: list[Node] = []
        coordinator, intake, release = self._addresses()
        (home / "task.py").write_text(TASK)
        (home / "tasks.toml").write_text(TASKS)
        for owner, value in values.items():
            (home / "data" / owner).mkdir(parents=True)
            (home / "data" / owner / "value").write_text(str(value))
            self.set_mode(owner, "good")
        plan = FederationPlan(
            name="ward",
            owners=tuple(values),
            floor=floor,
            coordinator_address=coordinator,
            intake_address=intake,
            release_address=release,
            tasks_file=home / "tasks.toml",
            data=home / "data",
        )
        write_federation(self.files, plan)
        self.edit("aggregator", "\nstate", f"\nlease_seconds = {lease_seconds}\nstate")
        torch.manual_seed(0)
        self.initial = {"weight": torch.randn(1, 2), "bias": torch.randn(1)}
        save_file(self.initial, home / "initial.safetensors")

    def runs(self, owner: str) -> list[int]:
        """The rounds that the owner's task was run for, once for each time."""
        return [int(line) for line in (self.home / "data" / owner / "runs").read_text().split()]

    def set_mode(self, owner: str, mode: str) -> None:
        (self.home / "data" / owner / "mode").write_text(mode)

    def edit(self, node: str, old: str, new: str) -> None:
        """Change a node's TOML file."""
        path = self.files / f"{node}.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def aggregator(self, *options: str) -> Node:
        config = self.files / "aggregator.toml"
        node = self._start("aggregator", "aggregator-node", "--config", str(config), *options)
        node.says("aggregator is ready")
        return node

    def owner(self, name: str) -> Node:
        return self._start(name, "owner-node", "--config", str(self.files / f"{name}.toml"))

    def owners(self) -> dict[str, Node]:
        return {name: self.owner(name) for name in self.values}

    def coordinator(self, **job: Any) -> Node:
        """Run a job to its end, or go on with it."""
        path = self.home / "job.toml"
        values: dict[str, Any] = {
            "name": "halving",
            "task": "halving",
            "model": "initial.safetensors",
            "rounds": 3,
            "owners": sorted(self.values),
            "floor": 2,
            "round_deadline_seconds": 60,
            "settings": {"lr": 0.5},
        }
        settings = values.pop("settings") | job.pop("settings", {})
        lines = [f"{key} = {json.dumps(value)}" for key, value in (values | job).items()]
        lines += ["[settings]", *(f"{key} = {value}" for key, value in settings.items())]
        path.write_text("\n".join(lines))
        return self.run_job(path, self.out)

    def run_job(self, job: Path, out: Path) -> Node:
        """Run the job of this file to its end, or go on with it."""
        config = str(self.files / "coordinator.toml")
        command = ["run", str(job), "--config", config, "--out", str(out)]
        return self._start("coordinator", "coordinator", *command)

    @contextmanager
    def held(self, owner: str, number: int) -> Iterator[None]:
        """Hold the owner's training of this round: inside, it has begun and does not end."""
        gate = self.gate(owner, number)

        def opened() -> int:
            with suppress(OSError):  # as long as nobody reads
                return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
            return 0

        descriptor = until(opened, f"{owner} trains in round {number}")
        gate.unlink()
        try:
            yield
        finally:
            os.close(descriptor)

    def gate(self, owner: str, number: int) -> Path:
        """Make the owner's training of this round wait for `held`."""
        gate = self.home / "data" / owner / f"round-{number}"
        if not gate.exists():
            os.mkfifo(gate)
        return gate

    def history(self) -> list[dict[str, Any]]:
        path = self.out / "history.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]

    def expected(self, *cohorts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The weights after rounds of these cohorts, by NumPy's arithmetic."""
        weights = {name: tensor.numpy() for name, tensor in self.initial.items()}
        for cohort in cohorts:
            for name, base in weights.items():
                total = np.zeros(base.shape)
                for owner in sorted(cohort):
                    total += base * np.float32(0.5) + np.float32(self.values[owner])
                weights[name] = (total / len(cohort)).astype(np.float32)
        return weights

    def check_model(self, *cohorts: Sequence[str]) -> None:
        """The run's model must be that of rounds of these cohorts, bit by bit."""
        model = load_file(self.out / "model.safetensors")
        for name, values in self.expected(*cohorts).items():
            assert model[name].numpy().tobytes() == values.tobytes(), name

    def close(self) -> None:
        for node in self.nodes:
            if node.process.poll() is None:
                node.kill()

    def _addresses(self) -> tuple[str, str, str]:
        """Where the coordinator is dialled, and the aggregator by owners and by the coordinator."""
        coordinator, intake, release = (f"localhost:{free_port()}" for _ in range(3))
        return coordinator, intake, release

    def _start(self, name: str, program: str, *arguments: str) -> Node:
        node = self.kind(name, self.home / f"{name}.log", BIN / program, *arguments)
        self.nodes.append(node)
        return node
