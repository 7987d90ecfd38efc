"""Two nodes that cannot reach each other for a while, and the third that can reach both."""

from collections.abc import Callable

from coordinator.settings import CoordinatorSettings
from owner_node.settings import OwnerSettings
from tests.proxy import Proxy
from tests.scenarios.federation import Federation
from tests.scenarios.processes import until

MakeFederation = Callable[..., Federation]

TWO = {"alice": 1.0, "bob": -0.3}
THREE = {**TWO, "carol": 0.7}


def behind(federation: Federation, node: str, address: str) -> Proxy:
    """A proxy to an address in the node's file, which names the proxy from now on."""
    proxy = Proxy(address)
    federation.edit(node, f'"{address}"', f'"{proxy.address}"')
    return proxy


def cut_and_heal(proxy: Proxy, address: str) -> Callable[[], None]:
    """End all connections and let none through; what is returned heals it."""
    proxy.redirect("localhost:9")  # nobody listens there
    return lambda: proxy.redirect(address)


def test_an_owner_that_is_cut_off_from_the_aggregator_and_back_within_its_lease_is_counted(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO, lease_seconds=60)
    federation.gate("bob", 2)
    address = OwnerSettings.load(federation.files / "bob.toml").aggregator
    with behind(federation, "bob", address) as proxy:
        federation.aggregator()
        bob = federation.owners()["bob"]
        coordinator = federation.coordinator(rounds=3)
        with federation.held("bob", 2):
            heal = cut_and_heal(proxy, address)
        bob.says("trying again")
        heal()
        assert coordinator.ends() == 0
    federation.check_model(*[["alice", "bob"]] * 3)


def test_an_owner_that_is_cut_off_from_the_aggregator_for_longer_is_missed_once_and_comes_back(
    federate: MakeFederation,
) -> None:
    federation = federate(THREE, lease_seconds=2)
    federation.gate("bob", 2)
    federation.gate("alice", 4)
    address = OwnerSettings.load(federation.files / "bob.toml").aggregator
    with behind(federation, "bob", address) as proxy:
        federation.aggregator()
        federation.owners()
        coordinator = federation.coordinator(rounds=5)
        with federation.held("bob", 2):
            heal = cut_and_heal(proxy, address)
            until(lambda: len(federation.history()) >= 2, "the round ends without bob")
        with federation.held("alice", 4):
            heal()
            until(lambda: 4 in federation.runs("bob"), "bob takes part again")
        assert coordinator.ends() == 0
    counted = [line["contributors"] for line in federation.history()]
    assert (counted[0], counted[1], counted[4]) == (3, 2, 3)
    everybody, without = sorted(THREE), ["alice", "carol"]
    federation.check_model(*[everybody if n == 3 else without for n in counted])


def test_a_coordinator_that_is_cut_off_from_the_aggregator_collects_the_release_afterwards(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    federation.gate("bob", 2)
    address = CoordinatorSettings.load(federation.files / "coordinator.toml").aggregator
    with behind(federation, "coordinator", address) as proxy:
        aggregator = federation.aggregator()
        federation.owners()
        coordinator = federation.coordinator(rounds=3)
        with federation.held("bob", 2):
            heal = cut_and_heal(proxy, address)
        until(lambda: len(aggregator.events("released")) == 2, "round 2 is released")
        assert len(federation.history()) == 1
        heal()
        assert coordinator.ends() == 0
    assert [line["round"] for line in federation.history()] == [1, 2, 3]
    federation.check_model(*[["alice", "bob"]] * 3)


def test_an_owner_that_is_cut_off_from_the_coordinator_pushes_all_the_same(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    federation.gate("bob", 2)
    address = OwnerSettings.load(federation.files / "bob.toml").coordinator
    with behind(federation, "bob", address) as proxy:
        federation.aggregator()
        federation.owners()
        coordinator = federation.coordinator(rounds=3)
        with federation.held("bob", 2):
            heal = cut_and_heal(proxy, address)
        until(lambda: len(federation.history()) == 2, "round 2 ends with bob")
        heal()
        assert coordinator.ends() == 0
    assert [line["contributors"] for line in federation.history()] == [2, 2, 2]
    federation.check_model(*[["alice", "bob"]] * 3)


def test_owners_that_are_cut_off_without_a_word_are_waited_for_and_not_invited_again_and_again(
    federate: MakeFederation,
) -> None:
    """Their connections seem to be there: only that no owner joins the round tells the coordinator."""
    federation = federate(TWO, lease_seconds=2)
    federation.gate("bob", 2)
    address = OwnerSettings.load(federation.files / "bob.toml").coordinator
    with behind(federation, "alice", address) as one, behind(federation, "bob", address) as other:
        federation.aggregator()
        federation.owners()
        coordinator = federation.coordinator(rounds=3)
        with federation.held("bob", 2):
            for proxy in (one, other):
                proxy.stall()
        coordinator.says("Waiting for alice, bob")
        for proxy in (one, other):
            proxy.resume()
        assert coordinator.ends() == 0
    assert [line["round"] for line in federation.history()] == [1, 2, 4]
    federation.check_model(*[["alice", "bob"]] * 3)
