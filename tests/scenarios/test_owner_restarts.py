"""An owner that dies when its update is finished: the same bytes leave after its restart, and count once."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cairn.ledger.files import find_ledger, read_ledger
from cairn.model.schema import Schema, TensorSpec
from owner_node.settings import OwnerSettings
from tests.proxy import Proxy, Way
from tests.scenarios.federation import Federation
from tests.scenarios.processes import Node, until

MakeFederation = Callable[..., Federation]

TWO = {"alice": 1.0, "bob": -0.3}
LEASE = 60  # seconds: an owner that is started again has its place still
SCHEMA = Schema.of([TensorSpec("bias", "F32", (1,)), TensorSpec("weight", "F32", (1, 2))])
AGAIN = "the finished update is pushed again, without training"


class Losing(Proxy):
    """Lets nothing come back any more once `is_answered` says so."""

    is_answered: Callable[[], bool] = staticmethod(lambda: False)

    def _counted(self, data: bytes, way: Way) -> int:
        if way is self.received and self.is_answered():
            return 0
        return super()._counted(data, way)


class Bob:
    """Bob's node, whose way to the aggregator is over a proxy until it dies, and what it keeps."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.data = federation.home / "data" / "bob"
        self.state = federation.files / "bob" / "state"
        self.aggregator = federation.aggregator()
        address = OwnerSettings.load(federation.files / "bob.toml").aggregator
        self.proxy = Losing(address)
        federation.edit("bob", f'"{address}"', f'"{self.proxy.address}"')
        self.address = address

    def starts(self) -> Node:
        return self.federation.owner("bob")

    def dies(self, node: Node) -> None:
        """End the node for good; what it has sent and nobody has taken is gone."""
        node.kill()
        self.proxy.cut()
        self.federation.edit("bob", f'"{self.proxy.address}"', f'"{self.address}"')

    def facts(self, kind: str) -> list[dict[str, Any]]:
        return [e.facts for e in read_ledger(find_ledger(self.state)) if e.kind == kind]

    def files(self) -> list[Path]:
        return list((self.state / "updates").iterdir())

    def is_counted(self, times: int) -> None:
        until(lambda: len(self.facts("released")) == times, "bob is told of every release")
        assert [facts["counted"] for facts in self.facts("released")] == [True] * times
        until(lambda: not self.files(), "what was kept is removed")


@pytest.fixture
def bob(federate: MakeFederation) -> Iterator[Bob]:
    bob = Bob(federate(TWO, lease_seconds=LEASE))
    with bob.proxy:
        yield bob


def dies_after_sent(bob: Bob) -> Node:
    """Run a job of two rounds, and kill bob when it has recorded its first update as sent.

    Nothing of it has arrived. Trained again, it would be another.
    """
    federation = bob.federation
    federation.gate("bob", 1)
    federation.gate("bob", 2)
    federation.owner("alice")
    first = bob.starts()
    coordinator = federation.coordinator(rounds=2)
    with federation.held("bob", 1):
        bob.proxy.stall()
    until(lambda: bob.facts("sent"), "bob records its update as sent")
    bob.dies(first)
    (bob.data / "value").write_text("7.0")
    return coordinator


def test_an_owner_that_dies_before_its_update_has_arrived_pushes_the_same_and_does_not_train(
    bob: Bob,
) -> None:
    federation = bob.federation
    coordinator = dies_after_sent(bob)
    (file,) = bob.files()
    assert file.stat().st_mode & 0o777 == 0o600
    assert bob.facts("sent")[0]["payload_digest"] == SCHEMA.digest(file.read_bytes()).hex()
    again = bob.starts()
    with federation.held("bob", 2):
        (bob.data / "value").write_text(str(TWO["bob"]))
    assert coordinator.ends() == 0
    assert federation.runs("bob") == [1, 2]
    assert [line["contributors"] for line in federation.history()] == [2, 2]
    federation.check_model(*[["alice", "bob"]] * 2)
    assert len(again.events(AGAIN)) == 1
    bob.is_counted(2)


@pytest.mark.parametrize("damage", ["spoilt", "gone"])
def test_an_owner_whose_finished_update_is_lost_leaves_the_round_and_not_the_job(
    bob: Bob, damage: str
) -> None:
    federation = bob.federation
    coordinator = dies_after_sent(bob)
    (file,) = bob.files()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    bob.starts()
    with federation.held("bob", 2):
        (bob.data / "value").write_text(str(TWO["bob"]))
    assert "Round 1: bob was not counted (UPDATE_LOST)" in coordinator.output()
    assert "Round 1: no release (BELOW_FLOOR)" in coordinator.output()
    coordinator.send(signal.SIGTERM)
    assert federation.runs("bob")[:1] == [1]
    assert bob.facts("declined")[0]["reason"] == "UPDATE_LOST"


def test_an_owner_that_dies_before_it_has_the_receipt_finds_it_and_pushes_nothing(bob: Bob) -> None:
    federation = bob.federation
    federation.gate("alice", 1)
    federation.owner("alice")
    first = bob.starts()

    def is_accepted() -> bool:
        return any(event["owner"] == "bob" for event in bob.aggregator.events("accepted"))

    bob.proxy.is_answered = is_accepted
    coordinator = federation.coordinator(rounds=1)
    with federation.held("alice", 1):
        until(is_accepted, "the aggregator accepts bob's update")
        bob.dies(first)
        assert bob.facts("receipt") == []
        again = bob.starts()
        again.says("update was accepted before")
        until(lambda: bob.facts("receipt"), "bob has its receipt")
    assert coordinator.ends() == 0
    federation.check_model(["alice", "bob"])
    assert federation.runs("bob") == [1]
    assert again.events(AGAIN) == []
    bob.is_counted(1)


def test_an_owner_that_died_removes_at_its_start_what_it_kept_of_a_round_that_is_over(
    bob: Bob,
) -> None:
    federation = bob.federation
    coordinator = dies_after_sent(bob)
    coordinator.send(signal.SIGTERM)
    assert coordinator.ends() == 1
    assert len(bob.files()) == 1
    bob.starts()  # nobody attends it
    until(lambda: not bob.files(), "it asks how the round ended, and removes what it kept")
    assert federation.runs("bob") == [1]
