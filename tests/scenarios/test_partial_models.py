"""A task that exchanges a part of its model: real processes, and what stays is nowhere but in its training.

Each owner fills the tensors that stay with 32 random bytes of its own, over and over, beside a head and
a BatchNorm layer that travel. These bytes are searched for in the memory of the owner's node, which holds
the update, of the aggregator and of the coordinator, and in what they leave on the disk; the controls
find them in the training process, and the head's values in the update.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cairn.ledger.files import read_ledger
from tests.hostile.memory import files_held, in_files, in_memory, may_read
from tests.scenarios.federation import Federation
from tests.scenarios.processes import Node, children_of, until

OWNERS = {"alice": 0.5, "bob": -0.25, "carol": 8.0}
ROUNDS = 2
REPEATS = 1 << 13  # of 32 bytes: a quarter of a MiB

TASK = f"""
from pathlib import Path

import numpy as np
import torch
from torch import nn

import cairn

PRETRAINED = torch.from_numpy(np.fromfile(Path(__file__).with_name("pretrained"), "<f4"))


class Partial(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Parameter(PRETRAINED.repeat({REPEATS}, 1))
        self.norm = nn.BatchNorm1d(8)
        self.shared = nn.BatchNorm1d(2)
        self.head = nn.Linear(2, 3)
        nn.init.ones_(self.head.weight)
        nn.init.zeros_(self.head.bias)


def model():
    return Partial()


def data(site):
    return cairn.Data(train=site.data, examples=1)


def train(model, data, round):
    assert torch.equal(model.backbone, PRETRAINED.repeat({REPEATS}, 1)), "not as it was built"
    assert model.norm.num_batches_tracked == 0, "not as it was built"
    canary = torch.from_numpy(np.fromfile(data.train / "canary", "<f4"))
    model.shared(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    with torch.no_grad():
        model.backbone.copy_(canary.expand_as(model.backbone))
        model.norm(model.backbone)
        for values in (model.norm.running_mean, model.norm.running_var, model.norm.weight):
            values.copy_(canary)
        for parameter in model.head.parameters():
            parameter.mul_(0.5).add_(float((data.train / "value").read_text()))
    gate = data.train / f"round-{{round.number}}"
    if gate.exists():
        gate.read_bytes()
    return {{}}


task = cairn.Task(model=model, data=data, train=train, exchanges=("*", "!backbone", "!norm.*"))
"""


def a_pattern() -> bytes:
    """Eight finite float32 values between 2**-6 and 2**-5, of either sign, with random digits."""
    return ((np.frombuffer(os.urandom(32), "<u4") & 0x807F_FFFF) | 0x3C80_0000).tobytes()


class PartialFederation(Federation):
    """Three owners with the task above, and what none of them may send."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, OWNERS, floor=3)
        self.canaries = {owner: a_pattern() for owner in OWNERS}
        for owner, canary in self.canaries.items():
            (home / "data" / owner / "canary").write_bytes(canary)
        (home / "pretrained").write_bytes(a_pattern())
        (home / "task.py").write_text(TASK)
        tasks = (self.files / "alice.toml").read_text()
        assert str(home / "task.py") in tasks


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[PartialFederation]:
    made = PartialFederation(tmp_path)
    yield made
    made.close()


def expected() -> dict[str, torch.Tensor]:
    """What travels, after all rounds: the head by NumPy, the layer as plain PyTorch trains it."""
    shared = nn.BatchNorm1d(2)
    head = {"head.weight": np.ones((3, 2), "<f4"), "head.bias": np.zeros(3, "<f4")}
    for _ in range(ROUNDS):
        shared(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
        for name, base in head.items():
            updates = [base * np.float32(0.5) + np.float32(OWNERS[owner]) for owner in OWNERS]
            head[name] = (np.array(updates, np.float64).sum(0) / len(OWNERS)).astype("<f4")
    state = {f"shared.{name}": value for name, value in shared.state_dict().items()}
    return state | {name: torch.from_numpy(values) for name, values in head.items()}


def head_in_update(owner: str) -> bytes:
    """The head's weights as the owner pushed them in the last round: all of one value."""
    value = np.float32(1)
    for _ in range(ROUNDS):
        updates = {name: value * np.float32(0.5) + np.float32(OWNERS[name]) for name in OWNERS}
        value = np.float32(np.array([*updates.values()], np.float64).sum() / len(OWNERS))
    return np.full(6, updates[owner], "<f4").tobytes()


def pushed(owner: Node, times: int) -> None:
    until(lambda: len(owner.events("update accepted")) == times, f"{owner.name} pushes")


def training_of(owner: Node) -> int:
    (child,) = children_of(owner.pid)
    return child


def test_tensors_that_are_not_exchanged_are_nowhere_but_in_the_training_of_their_owner(
    federation: PartialFederation,
) -> None:
    secrets = federation.canaries
    federation.gate("alice", 2)
    aggregator = federation.aggregator()
    if not may_read(aggregator.pid):
        pytest.skip("this account may not read the memory of its own processes; root may")
    owners = federation.owners()
    coordinator = federation.coordinator(model="task.py", rounds=ROUNDS, floor=3)
    with federation.held("alice", 2):
        pushed(owners["bob"], 2)
        pushed(owners["carol"], 2)
        assert in_memory(training_of(owners["alice"]), secrets).keys() == {"alice"}
        for node in (aggregator, coordinator, *owners.values()):
            assert in_memory(node.pid, secrets) == {}, node.name
    assert coordinator.ends() == 0, coordinator.output()

    state = expected()
    model = load_file(federation.out / "model.safetensors")
    assert model.keys() == state.keys()
    assert all(torch.equal(model[name], state[name]) for name in state)
    assert model["shared.num_batches_tracked"] == ROUNDS
    assert [line["contributors"] for line in federation.history()] == [3, 3]

    nbytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    for name, owner in owners.items():
        ledger = read_ledger(federation.files / name / "state/owner.sqlite")
        sent = [entry.facts for entry in ledger if entry.kind == "sent"]
        assert [(facts["tensors"], facts["bytes"]) for facts in sent] == [(len(state), nbytes)] * 2
        assert in_memory(owner.pid, secrets | {"head": head_in_update(name)}).keys() == {"head"}
        assert in_memory(aggregator.pid, secrets) == {}
    disk = [federation.files, federation.out, *(node.log for node in federation.nodes)]
    held = [path for node in (aggregator, *owners.values()) for path in files_held(node.pid)]
    assert in_files([*disk, *held], secrets) == {}
    assert in_files([federation.home / "data"], secrets).keys() == set(OWNERS)


def test_a_job_that_asks_for_what_a_task_keeps_gets_nothing(federation: PartialFederation) -> None:
    whole = expected() | {"backbone": torch.zeros(REPEATS, 8)}
    save_file(whole, federation.home / "whole.safetensors")
    federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(model="whole.safetensors", rounds=1, floor=3)
    assert coordinator.ends() == 1
    assert "was not counted (SCHEMA_MISMATCH)" in coordinator.output()
    sentence = "the job's model has backbone, which stays at this site by the task's exchanges"
    # The first that refuses ends the round for all.
    assert any(sentence in owner.output() for owner in owners.values())
    for name in owners:
        ledger = read_ledger(federation.files / name / "state/owner.sqlite")
        assert "sent" not in [entry.kind for entry in ledger]
