"""One aggregator for many tests: each has a job of its own on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.network import Network


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A floor of two, and a lease that no test outlasts."""
    network = Network(tmp_path_factory.mktemp("network"))
    yield network
    network.stop()


@pytest.fixture(scope="session")
def hasty_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A floor of three, and a lease of two seconds."""
    network = Network(tmp_path_factory.mktemp("hasty"), floor=3, lease_seconds=2)
    yield network
    network.stop()


@pytest.fixture
def own_network(tmp_path: Path) -> Iterator[Network]:
    """An aggregator of its own, whose ledger and releases are those of one test."""
    network = Network(tmp_path)
    yield network
    network.stop()
