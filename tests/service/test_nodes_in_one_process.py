"""All nodes of a federation as objects in this process: they start, work, are told to stop, and end."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from aggregator_node.node import AggregatorNode
from aggregator_node.settings import AggregatorSettings
from cairn.errors import CairnError, UsageError
from cairn.model.safetensors_reader import read_model
from cairn.provisioning.create import write_federation
from cairn.provisioning.plan import FederationPlan
from cairn.runtime.clock import Clock
from coordinator import initial_model
from coordinator.events import Event, JobFinished, JobStarted, RoundFinished
from coordinator.node import Coordinator
from coordinator.settings import CoordinatorSettings, JobSettings
from owner_node.node import OwnerNode
from owner_node.settings import OwnerSettings
from owner_node.training import child
from tests.scenarios.processes import until
from tests.warm.start import Subprocess, general

TASK = """
import torch
from torch import nn

import cairn


def model():
    return nn.Linear(2, 1)


def data(site):
    return cairn.Data(train=float(site.data.read_text()), examples=1)


def train(model, data, round):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(data.train * round.number)
    return {"value": data.train}


task = cairn.Task(model=model, data=data, train=train)
"""
TASKS = """
[tasks.task]
file = "task.py"
data = "{owner}.txt"
metrics = ["value"]
"""
JOB = """
name = "shared"
task = "task"
model = "task.py"
owners = ["alice", "bob"]
floor = 2
rounds = 3
"""


def free_port() -> int:
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


@pytest.fixture(autouse=True)
def _warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that the nodes start have imported PyTorch before they are needed."""
    for starter in (child, initial_model):
        monkeypatch.setattr(starter, "subprocess", Subprocess(general))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The files of a federation of alice, whose number is 1, and bob, whose number is 4."""
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "tasks.toml").write_text(TASKS)
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "alice.txt").write_text("1")
    (tmp_path / "bob.txt").write_text("4")
    coordinator, intake, release = (f"127.0.0.1:{free_port()}" for _ in range(3))
    plan = FederationPlan(
        name="shared",
        owners=("alice", "bob"),
        floor=2,
        coordinator_address=coordinator,
        intake_address=intake,
        release_address=release,
        tasks_file=tmp_path / "tasks.toml",
    )
    write_federation(tmp_path / "fed", plan)
    return tmp_path


@pytest.fixture
def aggregator(home: Path) -> Iterator[AggregatorNode]:
    node = AggregatorNode(AggregatorSettings.load(home / "fed/aggregator.toml"), Clock())
    node.start()
    yield node
    node.stop()
    assert node.wait() == 0


@pytest.fixture
def owners(home: Path, aggregator: AggregatorNode) -> Iterator[list[OwnerNode]]:
    del aggregator
    nodes = [
        OwnerNode(OwnerSettings.load(home / f"fed/{name}.toml"), Clock())
        for name in ("alice", "bob")
    ]
    for node in nodes:
        node.start()
    yield nodes
    for node in nodes:
        node.stop()
    assert [node.wait() for node in nodes] == [0, 0]


def coordinator(home: Path, told: list[Event], out: str = "run") -> Coordinator:
    settings = CoordinatorSettings.load(home / "fed/coordinator.toml")
    return Coordinator(JobSettings.load(home / "job.toml"), settings, home / out, tell=told.append)


@pytest.mark.usefixtures("owners")
def test_a_federation_in_one_process_runs_a_job_to_its_end_and_tells_what_happens(
    home: Path,
) -> None:
    told: list[Event] = []
    node = coordinator(home, told)
    node.start()
    assert node.wait() == 0
    first, *rounds, last = told
    assert isinstance(first, JobStarted)
    assert (first.spec.name, first.floor, first.released) == ("shared", 2, 0)
    finished = [event for event in rounds if isinstance(event, RoundFinished)]
    assert [(event.release, event.contributors) for event in finished] == [(1, 2), (2, 2), (3, 2)]
    assert [dict(event.metrics) for event in finished] == [{"value": 2.5}] * 3
    assert isinstance(last, JobFinished)
    schema, values = read_model(home / "run/model.safetensors")
    assert last == JobFinished(home / "run/model.safetensors", schema.digest(values))
    assert (
        memoryview(values).cast("B").cast("f").tolist() == [7.5] * 3
    )  # 3 times the mean of 1 and 4


def test_a_coordinator_that_is_stopped_can_go_on_in_the_same_process(home: Path) -> None:
    told: list[Event] = []
    node = coordinator(home, told)
    alone = AggregatorNode(AggregatorSettings.load(home / "fed/aggregator.toml"), Clock())
    alone.start()
    node.start()  # nobody attends: it waits
    until(lambda: told, "the job has started")
    node.stop()
    with pytest.raises(CairnError, match="stopped; the same command goes on"):
        node.wait()
    again = coordinator(home, told)
    again.start()
    until(
        lambda: len([event for event in told if isinstance(event, JobStarted)]) == 2, "it goes on"
    )
    again.stop()
    with pytest.raises(CairnError, match="stopped"):
        again.wait()
    alone.stop()
    assert alone.wait() == 0


@pytest.mark.usefixtures("aggregator")
def test_an_owner_that_has_ended_leaves_its_state_to_the_next(home: Path) -> None:
    for _ in range(2):
        node = OwnerNode(OwnerSettings.load(home / "fed/alice.toml"), Clock())
        node.start()
        node.stop()
        assert node.wait() == 0


def test_a_mistake_in_a_file_is_said_at_the_start_and_leaves_nothing_running(home: Path) -> None:
    (home / "fed/alice/node.key").unlink()
    node = OwnerNode(OwnerSettings.load(home / "fed/alice.toml"), Clock())
    with pytest.raises(UsageError, match=r"node\.key"):
        node.start()
    node.stop()
    assert node.wait() == 0
