"""A node whose disk is lost or set back to an older copy: what it can get from the others, it gets."""

import shutil
from collections.abc import Callable

from tests.hostile.checks import owner_entries
from tests.scenarios.federation import Federation

MakeFederation = Callable[..., Federation]

TWO = {"alice": 1.0, "bob": -0.3}


def test_a_coordinator_that_lost_its_run_folder_goes_on_from_the_last_release(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    federation.gate("bob", 3)
    federation.aggregator()
    federation.owners()
    coordinator = federation.coordinator(rounds=4)
    with federation.held("bob", 3):
        coordinator.kill()
        shutil.rmtree(federation.out)
        coordinator = federation.coordinator(rounds=4)
        coordinator.says("Going on after 2 rounds")
    assert coordinator.ends() == 0
    numbers = [line["round"] for line in federation.history()][-2:]
    assert numbers in ([3, 4], [4, 5])  # the third goes on, or was burnt with the coordinator
    federation.check_model(*[["alice", "bob"]] * 4)


def test_an_owner_whose_state_was_set_back_learns_what_came_since_and_trains_no_old_round_again(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    state, copy = federation.files / "bob" / "state", federation.home / "copy"
    federation.aggregator()
    federation.owner("alice")
    bob = federation.owner("bob")
    assert federation.coordinator(rounds=1).ends() == 0
    bob.kill()
    shutil.copytree(state, copy)
    bob = federation.owner("bob")
    federation.out = federation.home / "second"
    federation.gate("bob", 3)
    coordinator = federation.coordinator(rounds=4, name="another")
    with federation.held("bob", 3):
        bob.kill()
        shutil.rmtree(state)
        shutil.copytree(copy, state)
        federation.owner("bob")
    assert coordinator.ends() == 0
    federation.check_model(*[["alice", "bob"]] * 4)
    rounds = [e.facts["round"] for e in owner_entries(state) if e.kind == "sent"]
    assert rounds == [1, 3, 4]
    assert federation.runs("bob") == [1, 1, 2, 3, 3, 4]
