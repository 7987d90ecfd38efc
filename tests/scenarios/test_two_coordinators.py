"""A coordinator that was cut off and comes back when another was started elsewhere."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from coordinator.settings import CoordinatorSettings
from owner_node.settings import OwnerSettings
from tests.proxy import Proxy
from tests.scenarios.federation import Federation
from tests.scenarios.processes import Node, free_port, until
from tests.warm.start import BIN

MakeFederation = Callable[..., Federation]

TWO = {"alice": 1.0, "bob": -0.3}
WHOLE = ["alice", "bob"]
LEASE = 60  # seconds: an owner that turns from one coordinator to the other keeps its place


def elsewhere(federation: Federation, listen: str) -> Node:
    """The same coordinator on another machine: its certificate, its job, a copy of its run's folder."""
    text = (federation.files / "coordinator.toml").read_text()
    config = federation.files / "elsewhere.toml"
    here = CoordinatorSettings.load(federation.files / "coordinator.toml").listen
    config.write_text(text.replace(f'"{here}"', f'"{listen}"'))
    folder = federation.home / "elsewhere"
    shutil.copytree(federation.out, folder)
    arguments = ["run", str(federation.home / "job.toml"), "--config", str(config)]
    log, program = federation.home / "elsewhere.log", BIN / "coordinator"
    node = Node("elsewhere", log, program, *arguments, "--out", str(folder))
    federation.nodes.append(node)
    return node


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_coordinator_that_another_has_replaced_ends_and_leaves_everything_alone(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO, lease_seconds=LEASE)
    here = OwnerSettings.load(federation.files / "bob.toml").coordinator
    there = f"localhost:{free_port()}"
    with Proxy(here) as to_owners:
        for owner in TWO:
            federation.edit(owner, f'"{here}"', f'"{to_owners.address}"')
        federation.gate("bob", 2)
        federation.aggregator()
        owners = federation.owners()
        first = federation.coordinator(rounds=3)
        with federation.held("bob", 2):
            first.send(signal.SIGSTOP)
            kept = content(federation.out)
            second = elsewhere(federation, there)
            to_owners.redirect(there)
            second.says("Going on after 1 round")
        assert second.ends() == 0
        assert content(federation.out) == kept
        first.send(signal.SIGCONT)
        assert first.ends() == 3
        assert content(federation.out) == kept
        for node in owners.values():  # what the first has said is not the end of the job for them
            assert node.process.poll() is None
    ending = [line for line in first.output().splitlines() if line.startswith("error: ")]
    why = "another coordinator has registered the job halving after this one, and has taken over"
    assert ending == [f"error: {why}. This one ends, and leaves {federation.out} as it is"]
    assert "Traceback" not in first.output()
    federation.out = federation.home / "elsewhere"
    assert [line["contributors"] for line in federation.history()] == [2, 2, 2]
    federation.check_model(*[WHOLE] * 3)


def test_a_coordinator_that_is_stopped_after_another_has_replaced_it_ends_no_round_of_it(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO, lease_seconds=LEASE)
    federation.gate("bob", 1)
    federation.aggregator()
    federation.owners()
    first = federation.coordinator(rounds=1)
    with federation.held("bob", 1):
        second = elsewhere(federation, f"localhost:{free_port()}")
        second.says("Job halving")
        first.send(signal.SIGTERM)
        first.says("has taken over")
    assert second.ends() == 0
    assert first.ends() == 3
    federation.out = federation.home / "elsewhere"
    federation.check_model(WHOLE)


def test_a_coordinator_that_was_replaced_and_is_started_again_takes_over_in_its_turn(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO, lease_seconds=LEASE)
    federation.gate("bob", 1)
    federation.aggregator()
    federation.owners()
    first = federation.coordinator(rounds=2)
    with federation.held("bob", 1):
        second = elsewhere(federation, f"localhost:{free_port()}")
        second.says("Job halving")
        first.kill()
        again = federation.coordinator(rounds=2)
        until(lambda: again.output().count("Job halving") == 2, "it takes the job up again")
    assert second.ends() == 3
    assert again.ends() == 0
    federation.check_model(*[WHOLE] * 2)
