"""Whom an owner takes for its coordinator: one with a coordinator's certificate, or with the one that it pins.

The listeners are real, and the calls are those that an owner's node makes.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from cairn.errors import CallerNotAllowed, PeerUntrusted, Unavailable, UsageError
from cairn.identity.names import NodeName, Role
from cairn.model.schema import Schema, TensorSpec
from cairn.transport.receiver import PayloadReceiver
from owner_node.coordinator_client import CoordinatorClient
from owner_node.node import _coordinator
from tests.scenarios.processes import until
from tests.service.door import AGGREGATOR, ALICE, BOB, COORDINATOR, FEDERATION, Door, Ward

RIVAL = NodeName(FEDERATION, Role.COORDINATOR, "rival")
SCHEMA = Schema.of([TensorSpec("weight", "F32", (1,))])


@pytest.fixture
def ward(tmp_path: Path) -> Ward:
    return Ward(tmp_path)


def alices(
    ward: Ward, address: str, pin: Path | None = None
) -> tuple[CoordinatorClient, Callable[[], bool]]:
    """What alice's node calls this coordinator with, and what it asks before."""
    settings: Any = SimpleNamespace(
        coordinator=address, coordinator_certificate=pin, federation=FEDERATION
    )
    return _coordinator(settings, ward.home(ALICE).identity())


@contextmanager
def standing(address: str, pair: tuple[bytes, bytes], ward: Ward) -> Iterator[None]:
    """A server under this key and certificate that has no service: whoever trusts it is told so."""
    server = grpc.server(ThreadPoolExecutor(2))
    credentials = grpc.ssl_server_credentials([pair], ward.authority.certificate, True)
    server.add_secure_port(address, credentials)
    server.start()
    yield
    server.stop(0.0).wait()


def attends(client: CoordinatorClient) -> None:
    next(iter(client.attend(FEDERATION)))


def fetches(client: CoordinatorClient) -> None:
    client.fetch(bytes(32), PayloadReceiver(4, SCHEMA.hasher(), memoryview(bytearray(4))), 5.0)


def is_distrusted(client: CoordinatorClient) -> bool:
    """Whether it calls the server an untrusted one; not yet while it finds that the one before is gone."""
    try:
        attends(client)
    except PeerUntrusted:
        return True
    except Unavailable:
        return False
    raise AssertionError("the owner attended")


@pytest.mark.parametrize("call", [attends, fetches])
def test_the_aggregators_certificate_does_not_do_for_a_coordinator(
    ward: Ward, call: Callable[[CoordinatorClient], None]
) -> None:
    """The federation's authority has issued it, and it may serve."""
    with Door(ward.home(AGGREGATOR)) as door:
        client, serves = alices(ward, door.address)
        sentence = "that of aggregator/aggregator in federation ward, and not that of a coordinator"
        with pytest.raises(PeerUntrusted, match=sentence):
            serves()
        with pytest.raises(PeerUntrusted, match="correct `coordinator` in this node's file"):
            call(client)
        assert door.callers == []


def test_an_owners_certificate_does_not_do_for_a_coordinator(ward: Ward) -> None:
    with Door(ward.home(BOB)) as door:
        client, serves = alices(ward, door.address)
        with pytest.raises(PeerUntrusted):  # it may not serve at all
            serves()
        with pytest.raises(Unavailable):
            attends(client)
        assert door.callers == []


def test_any_coordinator_of_the_federation_does_where_none_is_pinned(ward: Ward) -> None:
    with Door(ward.home(RIVAL)) as door:
        client, serves = alices(ward, door.address)
        assert serves()
        attends(client)
        assert door.callers == [ALICE]


def test_who_takes_the_place_of_the_coordinator_after_the_look_is_not_spoken_to(ward: Ward) -> None:
    with Door(ward.home(COORDINATOR)) as door:
        client, serves = alices(ward, door.address)
        assert serves()
        attends(client)
    with standing(door.address, ward.issued(AGGREGATOR), ward):
        with pytest.raises(PeerUntrusted, match="is not the one that this node trusts"):
            attends(client)
        with pytest.raises(PeerUntrusted, match="and not that of a coordinator"):
            attends(client)


def test_a_coordinator_that_was_renewed_is_looked_at_again(ward: Ward) -> None:
    with Door(ward.home(COORDINATOR)) as door:
        client, serves = alices(ward, door.address)
        assert serves()
        attends(client)
    with standing(door.address, ward.issued(COORDINATOR), ward):
        with pytest.raises(PeerUntrusted):
            attends(client)
        with pytest.raises(CallerNotAllowed, match="does not serve what this node asks for"):
            attends(client)


def test_another_coordinator_than_the_pinned_one_is_refused(ward: Ward) -> None:
    pin = ward.directory / "coordinator.crt"
    pin.write_bytes(ward.issued(COORDINATOR)[1])
    with Door(ward.home(RIVAL)) as door:
        client, serves = alices(ward, door.address, pin)
        for call in (serves, lambda: attends(client)):
            with pytest.raises(PeerUntrusted, match="is not the one that this node trusts"):
                call()
        assert door.callers == []


def test_a_pin_is_renewed_by_appending_the_next_certificate(ward: Ward) -> None:
    home, pin = ward.home(COORDINATOR), ward.directory / "coordinator.crt"
    pin.write_bytes(home.certificate.read_bytes())
    with Door(home) as door:
        client, serves = alices(ward, door.address, pin)
        assert serves()
        attends(client)
    following = ward.issued(COORDINATOR)
    with standing(door.address, following, ward):
        until(lambda: is_distrusted(client), "the connection to the old server is given up")
        with pin.open("ab") as file:
            file.write(following[1])
        with pytest.raises(CallerNotAllowed, match="does not serve what this node asks for"):
            attends(client)


@pytest.mark.parametrize("node", [AGGREGATOR, BOB])
def test_what_is_no_coordinators_certificate_cannot_be_pinned(ward: Ward, node: NodeName) -> None:
    pin = ward.directory / "coordinator.crt"
    pin.write_bytes(ward.issued(node)[1])
    with pytest.raises(UsageError, match="it should be that of the coordinator of federation ward"):
        alices(ward, "localhost:1", pin)
