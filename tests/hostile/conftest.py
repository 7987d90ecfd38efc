"""An aggregator to attack. After every test its open rounds are ended and its books verified."""

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from cairn.identity.authority import Authority, Subject, issue, new_key, new_request
from cairn.identity.names import NodeName, Role
from cairn.v1 import aggregator_pb2
from tests.hostile.audit import check_books
from tests.hostile.checks import database
from tests.hostile.stage import Stage
from tests.service.network import FEDERATION, SECONDS, Network

NewCaller = Callable[[], str]


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A floor of three, and a lease that no test outlasts."""
    network = Network(tmp_path_factory.mktemp("hostile"), floor=3, lease_seconds=600)
    yield network
    network.stop()


@pytest.fixture(scope="session")
def new_caller(network: Network) -> NewCaller:
    """Certify another coordinator, and return its name for `network.job` and `network.release`.

    An aggregator writes down 60 different refusals of one caller in an hour.
    """
    home = network.directory / "authority/authority.key"
    authority = Authority(network.root, home.read_bytes())
    names = (f"coordinator-{number}" for number in itertools.count(1))

    def certify() -> str:
        name = next(names)
        subject = Subject(NodeName(FEDERATION, Role.COORDINATOR, name))
        key = new_key()
        certificate = issue(authority, new_request(subject, key), subject, datetime.now(UTC))
        network.credentials[name] = key, certificate
        return name

    return certify


@pytest.fixture(autouse=True)
def _the_books_are_right(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test with the network: end what is open, then verify what the aggregator has kept."""
    yield
    if "network" in request.fixturenames:
        network: Network = request.getfixturevalue("network")
        end_open_rounds(network)
        check_books(network.state, network.key)


def end_open_rounds(network: Network) -> None:
    with database(network.state / "aggregator.sqlite") as db:
        open_rounds = _open_rounds(db)
    for digest, coordinator in open_rounds:
        request = aggregator_pb2.AbortRoundRequest(manifest_digest=digest, epoch=1)
        network.release(coordinator).AbortRound(request, timeout=SECONDS)


def _open_rounds(db: sqlite3.Connection) -> list[tuple[bytes, str]]:
    return db.execute(
        "SELECT manifest_digest, coordinator FROM round JOIN job ON job.name = round.job"
        " WHERE state = ?",
        (aggregator_pb2.ROUND_STATE_OPEN,),
    ).fetchall()


@pytest.fixture(scope="session")
def stage(network: Network) -> Iterator[Stage]:
    """The network with a hostile coordinator, and alice as a real process."""
    stage = Stage(network)
    yield stage
    stage.close()
