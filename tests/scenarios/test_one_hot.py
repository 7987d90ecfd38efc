"""Every release counts each accepted owner exactly once and nobody else, whatever happens on the way.

The model has a row for every round and a column for every owner. In round r, owner i adds 1 at (r, i) and
leaves the rest as it is. So row r of the average is 1/n at each of the n owners that were counted and 0
elsewhere; an owner that is counted twice shows as 2/n. Later averages keep the row, bit by bit: every
owner sends the same one.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.scenarios.federation import Federation
from tests.scenarios.processes import Node, until

ROUNDS = 8
TASK = f"""
import torch
from torch import nn

import cairn


class Table(nn.Module):
    def __init__(self, owners):
        super().__init__()
        self.counted = nn.Parameter(torch.zeros({ROUNDS}, owners))


def model():
    return Table(OWNERS)


def data(site):
    return cairn.Data(train=site.data, examples=1)


def train(model, data, round):
    gate = data.train / f"round-{{round.number}}"
    if gate.exists():
        gate.read_bytes()
    with torch.no_grad():
        model.counted[round.number - 1, int(float((data.train / "value").read_text()))] += 1
        if (data.train / "mode").read_text() == "nan" and round.number == 2:
            model.counted.fill_(float("nan"))


task = cairn.Task(model=model, data=data, train=train)
"""


class Marking(Federation):
    """A federation with the task above; an owner's value is its column."""

    def __init__(self, home: Path, owners: Collection[str], *, lease_seconds: int) -> None:
        columns = {owner: float(column) for column, owner in enumerate(sorted(owners))}
        super().__init__(home, columns, floor=2, lease_seconds=lease_seconds)
        (home / "task.py").write_text(TASK.replace("OWNERS", str(len(owners))))
        save_file({"counted": torch.zeros(ROUNDS, len(owners))}, home / "initial.safetensors")

    def check(self, rounds: Mapping[int, Collection[str]]) -> None:
        """The run's model must hold these rounds, each of these owners, and nothing else."""
        expected = np.zeros((ROUNDS, len(self.values)), np.float32)
        for number, counted in rounds.items():
            for owner in counted:
                expected[number - 1, int(self.values[owner])] = np.float32(1 / len(counted))
        model = load_file(self.out / "model.safetensors")["counted"].numpy()
        np.testing.assert_array_equal(model, expected)
        history = {line["round"]: line["contributors"] for line in self.history()}
        assert history == {number: len(counted) for number, counted in rounds.items()}


Make = Callable[..., Marking]


@pytest.fixture
def marking(tmp_path: Path) -> Iterator[Make]:
    made: list[Marking] = []

    def make(*owners: str, lease_seconds: int = 15) -> Marking:
        made.append(Marking(tmp_path, owners, lease_seconds=lease_seconds))
        return made[-1]

    yield make
    for federation in made:
        federation.close()


def pushed(owner: Node, times: int) -> None:
    """Wait until so many updates of the owner were accepted, over all its starts."""
    until(lambda: len(owner.events("update accepted")) == times, f"{owner.name} pushes")


def test_owners_that_die_fail_or_come_back_are_counted_once_where_accepted_and_else_never(
    marking: Make,
) -> None:
    federation = marking("alice", "bob", "carol", "dave", lease_seconds=2)
    federation.set_mode("dave", "nan")  # in round 2
    for owner, number in (("carol", 3), ("alice", 4), ("bob", 4), ("alice", 5)):
        federation.gate(owner, number)
    federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(rounds=5)
    with federation.held("carol", 3):
        owners["carol"].kill()
    with federation.held("alice", 4):
        with federation.held("bob", 4):
            owners["bob"].kill()  # before it has pushed
        bob = federation.owner("bob")
        pushed(bob, 4)
    with federation.held("alice", 5):
        pushed(bob, 5)
        bob.kill()  # after its update was accepted
        federation.owner("bob").says("owner is ready")
    assert coordinator.ends() == 0
    assert "Round 2: dave was not counted (NOT_COUNTED)" in coordinator.output()
    assert "Round 3: carol was not counted (LEASE_EXPIRED)" in coordinator.output()
    rest = {"alice", "bob", "dave"}
    federation.check({1: {*rest, "carol"}, 2: {"alice", "bob", "carol"}, 3: rest, 4: rest, 5: rest})


def test_no_restart_of_coordinator_or_aggregator_counts_an_update_twice_or_not_at_all(
    marking: Make,
) -> None:
    federation = marking("alice", "bob", "carol")
    federation.gate("bob", 2)
    federation.gate("bob", 3)
    aggregator = federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(rounds=4)
    with federation.held("bob", 2):
        pushed(owners["alice"], 2)
        coordinator.kill()
        coordinator = federation.coordinator(rounds=4)
        coordinator.says("Going on after 1 round")
    with federation.held("bob", 3):
        pushed(owners["alice"], 3)
        aggregator.kill()  # and with it what alice has pushed
        federation.aggregator()
    assert coordinator.ends() == 0
    assert "Round 3: no release (AGGREGATOR_RESTARTED)" in coordinator.output()
    everybody = {"alice", "bob", "carol"}
    federation.check({1: everybody, 2: everybody, 4: everybody, 5: everybody})
