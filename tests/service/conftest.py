"""One aggregator for many tests: each has a job of its own on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.puppet import Puppet
from tests.service.network import Network


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A floor of two, and a lease that no test outlasts."""
    network = Network(tmp_path_factory.mktemp("network"))
    yield network
    network.stop()


@pytest.fixture(scope="session")
def timed_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Puppet]:
    """A floor of three, and a clock that only the test puts on. A test leaves no round of its own open."""
    network = Puppet(tmp_path_factory.mktemp("timed"), floor=3)
    yield network
    network.stop()


@pytest.fixture
def own_network(tmp_path: Path) -> Iterator[Network]:
    """An aggregator of its own, whose ledger and releases are those of one test."""
    network = Network(tmp_path)
    yield network
    network.stop()
