"""A node that is frozen in the middle of a round: who waits for it ends in time, and says why."""

import signal
from collections.abc import Callable

from cairn.runtime.timeouts import CALL_SECONDS, IDLE_SECONDS
from tests.scenarios.federation import Federation
from tests.scenarios.processes import children_of, is_alive, until

MakeFederation = Callable[..., Federation]

TWO = {"alice": 1.0, "bob": -0.3}
DEADLINE = 10
COORDINATOR_PATIENCE = 2
# A ping goes out after two thirds of the idle limit; then some connecting, which nobody answers either.
NOTICED = IDLE_SECONDS + 3 * CALL_SECONDS
SLOW = 180.0  # of the machine; without the deadline, a lease of 600 seconds would end the training


def test_a_frozen_aggregator_keeps_neither_a_training_nor_a_coordinator_beyond_the_deadline(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO, lease_seconds=600)
    federation.edit(
        "coordinator", "\nlisten", f"\npatience_seconds = {COORDINATOR_PATIENCE}\nlisten"
    )
    federation.gate("bob", 1)
    aggregator = federation.aggregator()
    bob = federation.owners()["bob"]
    coordinator = federation.coordinator(round_deadline_seconds=DEADLINE)
    with federation.held("bob", 1):
        (training,) = children_of(bob.pid)
        aggregator.send(signal.SIGSTOP)
        until(lambda: not is_alive(training), "the training is ended", DEADLINE + SLOW)
        bob.says("the round's deadline has passed")
        assert coordinator.ends(NOTICED + COORDINATOR_PATIENCE + SLOW) == 1
    assert "error: gave up on the aggregator at localhost:" in coordinator.output()
    assert "Traceback" not in coordinator.output()
    assert bob.process.poll() is None
    assert bob.events("the round has ended without this owner") == []  # nobody could say so


def test_a_coordinator_that_is_stopped_while_it_waits_for_owners_says_so_and_not_who_is_missing(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    federation.aggregator()
    coordinator = federation.coordinator(gather_seconds=600)
    coordinator.says("Waiting for alice, bob, at most 600 s: 0 owners of at least 2 so far")
    coordinator.send(signal.SIGTERM)
    assert coordinator.ends() == 1
    assert "error: stopped; the same command goes on" in coordinator.output()
    assert "Not there" not in coordinator.output()
