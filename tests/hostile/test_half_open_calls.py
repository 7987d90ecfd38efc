"""Calls whose request never comes: they take nobody's threads, on any port, and are ended and recorded."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cairn.transport.pools import LONG_CALLS_OF_ONE_CALLER, SHORT_CALLS_OF_ONE_CALLER
from tests.hostile.checks import bounded, refusals, written_refusals
from tests.hostile.http2 import STREAMS, Crowd, trust
from tests.hostile.owners import an_aggregator, joined_round
from tests.hostile.promptness import is_healthy, is_served, prompt
from tests.scenarios.processes import Node, until
from tests.service.network import FEDERATION, OWNERS, SMALL, Network
from tests.warm.start import BIN

JOIN = "/cairn.v1.IntakeService/JoinRound"
LIST_ENTRIES = "/cairn.v1.RecordService/ListEntries"
FETCH = "/cairn.v1.InvitationService/FetchModel"
ATTACKERS = ("mallory", "alice", "coordinator")  # on no roster, an owner, a model owner
CONNECTIONS = 32  # of each attacker, with 16 calls on each
GROWTH = 64 << 20  # what 96 connections and the threads of the admitted calls hold


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    yield from an_aggregator(tmp_path_factory)


@pytest.fixture(scope="module")
def coordinator(network: Network) -> Iterator[Node]:
    """A real coordinator, which waits for owners as long as any test lasts."""
    folder = network.directory / "job"
    folder.mkdir()
    (folder / "first.safetensors").write_bytes(SMALL.header() + bytes(SMALL.total_bytes))
    job: dict[str, Any] = {
        "name": "half-open",
        "task": "task",
        "model": "first.safetensors",
        "rounds": 1,
        "owners": OWNERS,
        "floor": 3,
        "gather_seconds": 600,
    }
    (folder / "job.toml").write_text(
        "\n".join(f"{key} = {json.dumps(value)}" for key, value in job.items())
    )
    await_forgotten(network)
    config = network.directory / "coordinator.toml"
    command = (BIN / "coordinator", "run", folder / "job.toml", "--config", config)
    node = Node("coordinator", folder / "log", *command, "--out", folder / "out")
    until(lambda: is_served(network, "bob", network.coordinator_at), "the coordinator listens")
    yield node
    node.kill()


def await_forgotten(network: Network) -> None:
    """The coordinator's certificate was an attacker's: those connections count for a second more."""
    until(lambda: is_served(network, "coordinator", network.release_at), "it may call again")


def attack(crowd: Crowd, network: Network, address: str, method: str) -> int:
    """Begin hundreds of calls under each certificate; returns how many there are."""
    for who in ATTACKERS:
        tls = trust(network.root, network.credentials[who])
        for _ in range(CONNECTIONS):
            connections = crowd.connect(1, address, tls)
            for connection in connections:  # at once: one without a call is closed after a second
                for _ in range(STREAMS):
                    connection.call(method, None)
            crowd.keep(connections)
    return len(ATTACKERS) * CONNECTIONS * STREAMS


def await_ended(crowd: Crowd, calls: int) -> None:
    until(lambda: crowd.counts()["ended"] == calls, "every call is ended")


def late(node: Node, method: str) -> list[str]:
    """Who has held a call of this method half open until the node ended it, once for each."""
    return [
        line["caller"].split()[0]
        for line in node.events("refused")
        if line["method"] == method and "the request did not come" in line["reason"]
    ]


def test_calls_without_a_request_take_nobodys_turn_at_either_port_of_the_aggregator(
    network: Network,
) -> None:
    opened = joined_round(network)
    with (
        bounded(network.node.pid, 2 * GROWTH),
        Crowd() as crowd,
        prompt(
            lambda: is_healthy(network, "bob", network.intake_at),
            lambda: opened.join("bob"),
            lambda: is_healthy(network, "rival", network.release_at),
            lambda: network.job(coordinator="rival"),
        ),
    ):
        calls = attack(crowd, network, network.intake_at, JOIN)
        calls += attack(crowd, network, network.release_at, LIST_ENTRIES)
        await_ended(crowd, calls)
    await_forgotten(network)
    opened.abort()
    assert late(network.node, JOIN)
    assert late(network.node, LIST_ENTRIES)
    recorded = {
        (e.facts["caller"].rpartition("/")[2], e.facts["reason"]) for e in refusals(network.state)
    }
    assert recorded >= {
        ("mallory", "UNKNOWN_OWNER"),
        ("alice", "TOO_MUCH"),
        ("coordinator", "NOT_ALLOWED"),
    }


def test_calls_without_a_request_take_nobodys_turn_at_a_coordinator(
    network: Network, coordinator: Node
) -> None:
    address = network.coordinator_at
    with (
        bounded(coordinator.pid, GROWTH),
        Crowd() as crowd,
        prompt(lambda: is_healthy(network, "bob", address)),
    ):
        calls = attack(crowd, network, address, FETCH)
        await_ended(crowd, calls)
    assert late(coordinator, FETCH)


def test_every_call_whose_request_does_not_come_is_recorded(network: Network) -> None:
    """Unary calls, streams and the health's, of an owner each."""
    attacks = {
        "carol": ("/grpc.health.v1.Health/Check", SHORT_CALLS_OF_ONE_CALLER),
        "dave": ("/cairn.v1.IntakeService/SubmitUpdate", LONG_CALLS_OF_ONE_CALLER),
        "erin": ("/cairn.v1.IntakeService/GetReceipt", SHORT_CALLS_OF_ONE_CALLER),
    }
    with Crowd() as crowd:
        for owner, (method, most) in attacks.items():
            tls = trust(network.root, network.credentials[owner])
            connections = crowd.connect(1, network.intake_at, tls)
            for _ in range(most):
                connections[0].call(method, None)
            crowd.keep(connections)
        await_ended(crowd, sum(most for _, most in attacks.values()))
    for owner, (method, most) in attacks.items():
        assert (
            f"spiffe://{FEDERATION}/owner/{owner}",
            method.rpartition("/")[2],
            "TOO_MUCH",
        ) in written_refusals(network.state)
        assert late(network.node, method) == most * [f"owner/{owner}"]
