"""Record-level differential privacy in a federation of real processes: each owner's budget ends its part in the job."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from cairn.cli.verify import ledger as ledger_command
from cairn.cli.verify import verify
from cairn.errors import UsageError
from cairn.ledger.files import read_ledger
from cairn.tasks.accounting import PrivateSteps, epsilon_of
from owner_node.sandbox.choice import sandbox_for
from tests.scenarios.federation import Federation

MakeFederation = Callable[..., Federation]

TWO = {"alice": 1.0, "bob": -0.3}
LOOP = PrivateSteps(0.25, 1.0, 8)  # two epochs of four batches
DELTA = 1e-5
ROUNDS = 3  # that the budget of both allows; bob's one training more costs him a round
EPSILON = epsilon_of([LOOP] * ROUNDS, DELTA) + 0.01
PRIVATE = f"private = {{ epsilon = {EPSILON}, delta = {DELTA}, noise = 1.0, clip = 1.0 }}\n"
TASK = """
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import cairn


def model():
    return nn.Linear(2, 1)


def data(site):
    value = float((site.data / "value").read_text())
    rows = torch.arange(80.0).reshape(40, 2).sin()
    return cairn.Data(train=(site.data, TensorDataset(rows, value * rows[:, :1])), examples=40)


def train(model, data, round):
    folder, rows = data.train
    optimizer = optim.SGD(model.parameters(), lr=round.settings["lr"])
    loader = DataLoader(rows, batch_size=10, shuffle=True)
    model, optimizer, loader = cairn.private(model, optimizer, loader, epochs=2)
    gate = folder / f"round-{round.number}"
    if gate.exists():
        gate.read_bytes()
    for _ in range(2):
        for inputs, wanted in loader:
            optimizer.zero_grad()
            loss = (model(inputs) - wanted).square().mean()
            loss.backward()
            optimizer.step()
    return {"value": loss.item()}


task = cairn.Task(model=model, data=data, train=train)
"""


@pytest.fixture
def federation(federate: MakeFederation) -> Federation:
    federation = federate(TWO, lease_seconds=60)
    (federation.home / "task.py").write_text(TASK)
    for owner in TWO:
        federation.edit(owner, 'metrics = ["value"]', "metrics = []")
        federation.edit(owner, "max_failures = 1000", PRIVATE)
    return federation


def state_of(federation: Federation, owner: str) -> Path:
    return federation.files / owner / "state/owner.sqlite"


def entries(federation: Federation, owner: str, kind: str) -> list[Any]:
    found = read_ledger(state_of(federation, owner))
    return [entry.facts for entry in found if entry.kind == kind]


def test_a_job_ends_when_the_budget_is_spent_and_a_killed_owner_has_forgotten_nothing(
    federation: Federation,
) -> None:
    federation.aggregator()
    federation.gate("bob", 2)
    owners = federation.owners()
    coordinator = federation.coordinator(rounds=10, name="long")
    with federation.held("bob", 2):  # what he is about to train is counted, and dies with him
        assert len(entries(federation, "bob", "spent")) == 2
        owners["bob"].kill()
        owners["bob"] = federation.owner("bob")
    assert coordinator.ends() != 0
    assert [line["round"] for line in federation.history()] == [1, 2]

    assert [facts["round"] for facts in entries(federation, "bob", "spent")] == [1, 2, 2]
    assert [facts["round"] for facts in entries(federation, "bob", "sent")] == [1, 2]
    declined = entries(federation, "bob", "declined")
    assert {facts["reason"] for facts in declined} == {"BUDGET_SPENT"}
    assert "BUDGET_SPENT" in coordinator.output()
    for owner, node in owners.items():
        node.process.terminate()
        assert node.ends() == 0
        check_ledger(federation, owner)


def check_ledger(federation: Federation, owner: str) -> None:
    """The account of dp-accounting, of Cairn's verifier and of its ledger command agree."""
    spent = entries(federation, owner, "spent")
    expected = epsilon_of([LOOP] * len(spent), DELTA)
    assert spent[-1]["epsilon"] == pytest.approx(expected)
    arguments = [
        str(state_of(federation, owner)),
        "--config",
        str(federation.files / f"{owner}.toml"),
    ]
    shown = CliRunner().invoke(verify, arguments)
    assert shown.exit_code == 0, shown.output
    assert f"epsilon {expected:.3g} of {EPSILON:g} is spent" in " ".join(shown.output.split())
    listed = CliRunner().invoke(ledger_command, [str(state_of(federation, owner))])
    assert json.dumps(spent[-1]["epsilon"]) in listed.output


def test_it_trains_privately_in_a_sandbox_and_what_leaves_has_no_metric(
    federation: Federation,
) -> None:
    try:
        sandbox_for("task.py", federation.home, [])
    except UsageError as error:
        pytest.skip(str(error))
    for owner in TWO:
        federation.edit(owner, "[tasks.halving]\n", '[tasks.halving]\nsandbox = "on"\n')
    federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(rounds=1)
    assert coordinator.ends() == 0, coordinator.output() + owners["bob"].output()
    (line,) = federation.history()
    assert (line["contributors"], line["metrics"]) == (2, {})
    model = load_file(federation.out / "model.safetensors")
    assert {name: tuple(value.shape) for name, value in model.items()} == {
        "weight": (1, 2),
        "bias": (1,),
    }
    for owner in TWO:
        (sent,) = entries(federation, owner, "sent")
        assert (sent["metrics"], sent["dropped_metrics"]) == ({}, ["value"])
