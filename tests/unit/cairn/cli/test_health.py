"""Which addresses a node's health depends on, and under which certificates they are asked."""

import re
from pathlib import Path

import pytest

from cairn.cli.health import check_health
from cairn.errors import Unavailable, UsageError
from cairn.identity.names import NodeName, Role
from cairn.provisioning.create import FederationPlan, write_federation
from tests.service.door import Door, Home

OWNERS = ("alice", "bob", "carol")


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    directory = tmp_path / "ward"
    at = ("localhost:1", "localhost:2", "localhost:3")
    write_federation(directory, FederationPlan("ward", OWNERS, 3, *at))
    return directory


def door_of(federation: Path, name: str, role: Role) -> Door:
    files = (federation / name / file for file in ("node.crt", "node.key", "authority.crt"))
    return Door(Home(federation / name, NodeName("ward", role, name), *files))


def pointed(config: Path, key: str, address: str) -> Path:
    line = re.search(rf'^{key} = "[^"]*"', config.read_text(), flags=re.MULTILINE)
    assert line
    text = config.read_text().replace(line[0], f'{key} = "{address}"', 1)
    config.write_text(text)
    return config


def test_an_owner_is_healthy_when_the_pinned_aggregator_answers_it(federation: Path) -> None:
    with door_of(federation, "aggregator", Role.AGGREGATOR) as door:
        config = pointed(federation / "alice.toml", "aggregator", door.address)
        assert check_health(config, 10) == [door.address]


def test_an_owner_is_not_healthy_where_another_node_answers(federation: Path) -> None:
    with door_of(federation, "coordinator", Role.COORDINATOR) as door:
        config = pointed(federation / "alice.toml", "aggregator", door.address)
        with pytest.raises(Unavailable, match="not the one that this node trusts"):
            check_health(config, 10)


def test_a_coordinator_is_healthy_when_it_answers_itself(federation: Path) -> None:
    with door_of(federation, "coordinator", Role.COORDINATOR) as door:
        config = pointed(federation / "coordinator.toml", "listen", door.address)
        assert check_health(config, 10) == [door.address]


def test_a_pinned_file_that_is_not_the_aggregators_is_a_mistake_of_the_file(
    federation: Path,
) -> None:
    certificate = (federation / "bob/node.crt").read_bytes()
    (federation / "alice/aggregator.crt").write_bytes(certificate)
    with pytest.raises(UsageError, match="is the certificate of owner/bob"):
        check_health(federation / "alice.toml", 10)
