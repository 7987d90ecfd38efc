"""A node that meets a peer which it cannot trust ends with one sentence that says why, and exit code 1."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scenarios.federation import Federation
from tests.service import strangers
from tests.service.door import AGGREGATOR, COORDINATOR, Ward

MakeFederation = Callable[..., Federation]


@pytest.fixture
def federation(federate: MakeFederation) -> Federation:
    return federate({"alice": 1.0, "bob": -0.3})


@pytest.fixture
def elsewhere(tmp_path: Path) -> Ward:
    (tmp_path / "elsewhere").mkdir()
    return Ward(tmp_path / "elsewhere")


def test_an_owner_ends_where_the_coordinator_is_of_another_authority(
    federation: Federation, elsewhere: Ward
) -> None:
    with strangers.of_another_authority(elsewhere, elsewhere, COORDINATOR) as (address, _):
        point(federation, "alice", "coordinator", address)
        alice = federation.owner("alice")
        assert alice.ends() == 1
    assert f"error: gave up on the coordinator at {address} after 2 seconds: " in alice.output()
    assert "not the one that this node trusts" in alice.output()
    assert "Traceback" not in alice.output()


def test_a_coordinator_ends_where_the_aggregator_has_another_certificate(
    federation: Federation, elsewhere: Ward
) -> None:
    with strangers.with_another_certificate(elsewhere, elsewhere, AGGREGATOR) as (address, _):
        point(federation, "coordinator", "aggregator", address)
        coordinator = federation.coordinator()
        assert coordinator.ends() == 1
    assert f"gave up on the aggregator at {address} after 2 seconds: " in coordinator.output()
    assert "ask whoever runs that node for its present one" in coordinator.output()
    assert "Traceback" not in coordinator.output()


def point(federation: Federation, node: str, key: str, address: str) -> None:
    """Lead a node elsewhere, with little patience."""
    path = federation.files / f"{node}.toml"
    lines = path.read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if line.startswith(f"{key} = "))
    lines[number] = f'{key} = "{address}"\npatience_seconds = 2'
    path.write_text("\n".join(lines))
