"""Nodes that are stopped, killed and started again, and what their processes hold and open."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scenarios.federation import Federation
from tests.scenarios.processes import (
    ColdNode,
    children_of,
    descendants_of,
    is_alive,
    tcp_sockets_of,
    until,
)

MakeFederation = Callable[..., Federation]

TWO = {"alice": 1.0, "bob": -0.3}
LISTENING = "0A"


def maps_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def test_a_coordinator_that_is_killed_and_started_again_ends_with_the_same_model(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    federation.gate("bob", 3)
    federation.aggregator()
    federation.owners()
    coordinator = federation.coordinator(rounds=5)
    with federation.held("bob", 3):
        coordinator.kill()
        coordinator = federation.coordinator(rounds=5)
        coordinator.says("Going on after 2 rounds")
    assert coordinator.ends() == 0
    assert [line["round"] for line in federation.history()] == [1, 2, 3, 4, 5]
    federation.check_model(*[["alice", "bob"]] * 5)
    assert federation.coordinator(rounds=5).ends() == 0  # it is done, and says so again
    federation.check_model(*[["alice", "bob"]] * 5)


def test_a_coordinator_that_is_stopped_says_how_to_go_on_and_does(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    federation.gate("bob", 2)
    federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(rounds=3)
    with federation.held("bob", 2):
        coordinator.send(signal.SIGTERM)
        assert coordinator.ends() == 1
    assert "error: stopped; the same command goes on from the checkpoint" in coordinator.output()
    assert "Traceback" not in coordinator.output()
    assert federation.coordinator(rounds=3).ends() == 0
    federation.check_model(*[["alice", "bob"]] * 3)
    assert all(owner.process.poll() is None for owner in owners.values())


def test_a_coordinator_that_waits_for_owners_can_be_stopped(federate: MakeFederation) -> None:
    federation = federate(TWO)
    federation.aggregator()
    coordinator = federation.coordinator()
    coordinator.says("Job halving: 3 rounds")
    coordinator.send(signal.SIGINT)
    assert coordinator.ends() == 1
    assert "Traceback" not in coordinator.output()
    assert "error: stopped; the same command goes on from the checkpoint" in coordinator.output()


def test_what_each_process_holds_while_an_owner_trains(federate: MakeFederation) -> None:
    federation = federate(TWO)
    federation.kind = ColdNode
    federation.gate("bob", 2)
    aggregator = federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(rounds=2)
    with federation.held("bob", 2):
        for owner in owners.values():
            sockets = tcp_sockets_of(owner.pid)
            assert len(sockets) >= 2  # to the coordinator and to the aggregator
            assert LISTENING not in sockets
            (training,) = children_of(owner.pid)
            assert tcp_sockets_of(training) == []
            assert maps_torch(training)
            assert not maps_torch(owner.pid)
            environment = Path(f"/proc/{training}/environ").read_bytes()
            assert b"node.key" not in environment
            held = [fd.readlink().as_posix() for fd in Path(f"/proc/{training}/fd").iterdir()]
            assert not [name for name in held if "federation" in name]
        assert tcp_sockets_of(aggregator.pid).count(LISTENING) == 2
        assert tcp_sockets_of(coordinator.pid).count(LISTENING) == 1
        assert not maps_torch(aggregator.pid)
        assert not maps_torch(coordinator.pid)
        assert aggregator_limits(aggregator.pid) == ("1", "1")
    assert coordinator.ends() == 0


def aggregator_limits(pid: int) -> tuple[str, str]:
    """The soft and the hard limit of a core dump, which would hold updates."""
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max core file size"):
            _, _, values = line.partition("size")
            soft, hard, *_ = values.split()
            return soft, hard
    raise AssertionError


def test_sigterm_ends_idle_nodes_and_their_training_processes_with_them(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    aggregator = federation.aggregator()
    owners = federation.owners()
    assert federation.coordinator(rounds=1).ends() == 0
    nodes = [aggregator, *owners.values()]
    started = [child for node in nodes for child in descendants_of(node.pid)]
    assert len(started) == 2
    for node in nodes:
        node.send(signal.SIGTERM)
    for node in nodes:
        assert node.ends() == 0
        assert "Traceback" not in node.output()
    until(lambda: not any(map(is_alive, started)), "the training processes are gone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_owner_that_waits_for_its_coordinator_can_be_stopped(
    federate: MakeFederation, number: signal.Signals
) -> None:
    owner = federate(TWO).owner("alice")
    owner.says("owner is ready")
    owner.send(number)
    assert owner.ends() == 0
    assert "Traceback" not in owner.output()


def test_the_training_process_of_a_killed_owner_does_not_outlive_it(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    federation.gate("bob", 1)
    federation.aggregator()
    owners = federation.owners()
    federation.coordinator(rounds=1)
    with federation.held("bob", 1):
        started = descendants_of(owners["bob"].pid)
        owners["bob"].kill()
        until(lambda: not any(map(is_alive, started)), "the training process is gone")
