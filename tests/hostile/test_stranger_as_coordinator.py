"""Somebody of the federation who is no coordinator, or another one, listens where owners dial theirs."""

from pathlib import Path

import pytest

from tests.hostile.stage import HostileCoordinator
from tests.scenarios.processes import Node
from tests.service.network import Network
from tests.warm.start import BIN

# Its certificate has the right issuer and host, and may serve.
STRANGERS = {
    "aggregator": (
        False,
        "that of aggregator/aggregator in federation ward, and not that of a coordinator",
    ),
    "rival": (True, "is not the one that this node trusts"),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_an_owner_does_not_attend_a_stranger_in_its_coordinators_place(
    tmp_path: Path, who: str
) -> None:
    pins, words = STRANGERS[who]
    network = Network(tmp_path, floor=3)
    stranger = HostileCoordinator()
    stranger.start(network, who)
    config = network.directory / "alice.toml"
    if pins:
        line = 'coordinator_certificate = "coordinator/node.crt"\nstate ='
        config.write_text(config.read_text().replace("\nstate =", f"\n{line}", 1))
    alice = Node("alice", network.directory / "alice.log", BIN / "owner-node", "--config", config)
    try:
        alice.says(words)
        assert stranger.attended == []
        assert alice.events("attending") == []
    finally:
        alice.kill()
        stranger.stop()
        network.stop()
