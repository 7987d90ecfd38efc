"""`cairn doctor` tells apart why a peer cannot be reached, and whether it fits; it asks for health only."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health

from cairn.errors import CallerNotAllowed
from cairn.identity.authority import Authority, Subject, issue, new_authority, new_key, new_request
from cairn.identity.certified import Certified
from cairn.identity.names import NodeName, Role
from cairn.protocol.messages import PROTOCOL
from tests.service.door import Door, Home
from tests.service.strangers import in_tls, served
from tests.unit.cairn.cli.examination import Says, examined, made, pointed, standing

SERVES = Says(("cairn-protocol", str(PROTOCOL)), ("cairn-software", "7.8.9"))


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    return made(tmp_path)


def home_of(ward: Path, name: str, role: Role) -> Home:
    files = (ward / name / file for file in ("node.crt", "node.key", "authority.crt"))
    return Home(ward / name, NodeName("ward", role, name), *files)


def issued(ward: Path, subject: Subject, authority: Authority | None = None) -> None:
    """Give a node a new key and certificate; of another authority where one is given."""
    home, own = ward / subject.node.name, ward / "authority"
    authority = authority or Authority(
        (own / "authority.crt").read_bytes(), (own / "authority.key").read_bytes()
    )
    key = new_key()
    begin = datetime.now(UTC)
    certificate = issue(authority, new_request(subject, key), subject, begin, 100)
    (home / "node.key").write_bytes(key)
    (home / "node.crt").write_bytes(certificate)
    (home / "authority.crt").write_bytes(authority.certificate)


def aggregator_at(ward: Path, port: int, host: str = "localhost") -> Path:
    return pointed(ward / "alice.toml", "aggregator", f"{host}:{port}")


def test_a_federation_that_is_up_is_in_order_from_every_side(ward: Path) -> None:
    aggregator = home_of(ward, "aggregator", Role.AGGREGATOR)
    coordinator = home_of(ward, "coordinator", Role.COORDINATOR)
    with Door(aggregator) as first, Door(coordinator) as second:
        config = pointed(ward / "alice.toml", "aggregator", first.address)
        found = examined(pointed(config, "coordinator", second.address))
        own = pointed(ward / "coordinator.toml", "aggregator", first.address)
        other = examined(pointed(own, "listen", second.address))
    assert found.exit_code == other.exit_code == 0
    assert f"aggregator/aggregator in federation ward at {first.address} serves" in found.only(
        "aggregator", "ok"
    )
    assert f"coordinator/coordinator in federation ward at {second.address} serves" in found.only(
        "coordinator", "ok"
    )
    assert f"with version {PROTOCOL} of the protocol" in found.only("aggregator", "ok")
    assert found.of("clock", "ok") == [
        "it agrees with that of the coordinator",
        "it agrees with that of the aggregator",
    ]
    running = f"listen = {second.address}: this node runs now and listens there"
    assert other.only("port", "note") == running


def test_nothing_but_health_is_asked_of_a_peer(ward: Path) -> None:
    with standing(ward / "aggregator", SERVES) as (port, methods):
        assert "Cairn 7.8.9" in examined(aggregator_at(ward, port)).only("aggregator", "ok")
    assert methods == ["/grpc.health.v1.Health/Check"]


def test_a_name_that_does_not_resolve_is_told_from_a_port_that_nobody_has(ward: Path) -> None:
    found = examined(aggregator_at(ward, 7443, "nowhere.invalid"))
    sentence = found.only("aggregator", "fault")
    assert sentence.startswith("aggregator: the name nowhere.invalid does not resolve (")
    assert "correct the address nowhere.invalid:7443 in this node's file" in sentence


def test_an_aggregator_that_does_not_listen_is_a_fault_and_a_coordinator_a_warning(
    ward: Path,
) -> None:
    found = examined(ward / "alice.toml")
    assert found.faults() == ["aggregator"]
    sentence = found.only("aggregator", "fault")
    assert sentence == (
        "nothing listens at localhost:2 (connection refused): start the aggregator, or compare"
        " `aggregator` in this file with `listen_owners` in the aggregator's"
    )
    sentence = found.only("coordinator", "warning")
    assert "nothing listens at localhost:1 (connection refused)" in sentence
    assert "a coordinator listens only while it runs a job" in sentence
    assert "compare `coordinator` in this file with `listen` in the coordinator's" in sentence


def test_a_listener_that_says_nothing_is_given_up(ward: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = aggregator_at(ward, silent.getsockname()[1])
        sentence = examined(config, "--timeout", "0.2").only("aggregator", "fault")
    assert "accepts connections and says nothing for 0.2 seconds" in sentence
    assert "restart it, or correct the address" in sentence


@contextmanager
def plain() -> Iterator[int]:
    """A program that answers whatever comes, and not in TLS."""

    def answer(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_another_program_at_the_address_is_told_apart(ward: Path) -> None:
    with plain() as port:
        sentence = examined(aggregator_at(ward, port)).only("aggregator", "fault")
    assert f"what listens at localhost:{port} is no node of a federation" in sentence
    assert "correct the address" in sentence


def test_a_web_server_under_a_trusted_certificate_is_told_apart(ward: Path) -> None:
    """It was told that the peer refuses this node's certificate."""
    home = ward / "aggregator"
    context = served((home / "node.key").read_bytes(), (home / "node.crt").read_bytes(), ward)
    with in_tls(context) as address:
        config = pointed(ward / "alice.toml", "aggregator", address)
        sentence = examined(config).only("aggregator", "fault")
    assert f"what listens at {address} speaks TLS but not gRPC" in sentence
    assert "correct the address" in sentence


def test_an_aggregator_of_another_certificate_is_told_with_both(ward: Path) -> None:
    pinned = ward / "alice/aggregator.crt"
    issued(ward, Subject(NodeName("ward", Role.AGGREGATOR, "aggregator"), ("localhost",)))
    with standing(ward / "aggregator", SERVES) as (port, methods):
        sentence = examined(aggregator_at(ward, port)).only("aggregator", "fault")
    assert f"localhost:{port} is another than the pinned one of {pinned}" in sentence
    assert "it is that of aggregator/aggregator in federation ward, sha256:" in sentence
    assert "ask whoever runs that node for its present node.crt" in sentence
    assert methods == []


def pinning(ward: Path, certificate: Path) -> Path:
    """Alice's file, with this certificate pinned for the coordinator."""
    config = ward / "alice.toml"
    line = f'coordinator_certificate = "{certificate}"\nstate ='
    config.write_text(config.read_text().replace("\nstate =", f"\n{line}", 1))
    return config


def test_the_pinned_coordinator_is_looked_for_under_its_own_certificate(ward: Path) -> None:
    pinned = ward / "pinned.crt"
    pinned.write_bytes((ward / "coordinator/node.crt").read_bytes())
    config = pinning(ward, pinned)
    with standing(ward / "coordinator", SERVES) as (port, _):
        found = examined(pointed(config, "coordinator", f"localhost:{port}"))
    assert f"{pinned} pins the coordinator, valid until" in found.only("coordinator pin", "ok")
    assert "serves, Cairn 7.8.9" in found.only("coordinator", "ok")
    issued(ward, Subject(NodeName("ward", Role.COORDINATOR, "coordinator"), ("localhost",)))
    with standing(ward / "coordinator", SERVES) as (port, methods):
        found = examined(pointed(config, "coordinator", f"localhost:{port}"))
    sentence = found.only("coordinator", "fault")
    assert f"localhost:{port} is another than the pinned one of {pinned}" in sentence
    assert methods == []


def test_a_pin_that_is_not_a_coordinators_is_named(ward: Path) -> None:
    found = examined(pinning(ward, ward / "aggregator/node.crt"))
    sentence = found.only("coordinator pin", "fault")
    assert "is the certificate of aggregator/aggregator" in sentence
    assert "ask whoever runs the coordinator for its node.crt" in sentence


def test_a_coordinator_of_another_authority_is_told(ward: Path) -> None:
    elsewhere = new_authority("ward", datetime.now(UTC))
    node = NodeName("ward", Role.COORDINATOR, "coordinator")
    issued(ward, Subject(node, ("localhost",)), elsewhere)
    with standing(ward / "coordinator", SERVES) as (port, _):
        config = pointed(ward / "alice.toml", "coordinator", f"localhost:{port}")
        sentence = examined(config).only("coordinator", "fault")
    assert "was not issued by the authority" in sentence
    assert str(ward / "alice/authority.crt") in sentence
    assert "the two nodes need certificates of one authority" in sentence


def test_a_certificate_that_lacks_the_dialled_name_is_told_with_the_names_it_has(
    ward: Path,
) -> None:
    with standing(ward / "aggregator", SERVES, "0.0.0.0") as (port, _):  # noqa: S104 - all of the loopback
        config = aggregator_at(ward, port, "127.0.0.2")
        sentence = examined(config).only("aggregator", "fault")
    assert "holds the names aggregator, localhost, 127.0.0.1, ::1" in sentence
    assert "and not 127.0.0.2: dial one of them" in sentence
    assert "`cairn sign --host 127.0.0.2`" in sentence


def test_that_our_own_certificate_is_refused_is_told(ward: Path) -> None:
    elsewhere = new_authority("ward", datetime.now(UTC))
    issued(ward, Subject(NodeName("ward", Role.OWNER, "alice")), elsewhere)
    with standing(ward / "aggregator", SERVES) as (port, methods):
        sentence = examined(aggregator_at(ward, port)).only("aggregator", "fault")
    assert f"localhost:{port} refuses this node's certificate {ward / 'alice/node.crt'}" in sentence
    assert "compare the two authority.crt with `cairn identity`" in sentence
    assert methods == []


def test_the_reason_of_a_peer_that_does_not_admit_us_is_passed_on(ward: Path) -> None:
    def nobody(caller: Certified) -> None:
        raise CallerNotAllowed(f"{caller.node} is not on the roster")

    home = home_of(ward, "aggregator", Role.AGGREGATOR)
    with Door(home, admits=nobody) as door:
        config = pointed(ward / "alice.toml", "aggregator", door.address)
        sentence = examined(config).only("aggregator", "fault")
    assert sentence == (
        f"{door.address} refuses this node: owner/alice in federation ward is not on the roster;"
        " ask whoever runs it"
    )


def test_an_address_that_leads_to_another_role_is_told(ward: Path) -> None:
    with standing(ward / "aggregator", SERVES) as (port, methods):
        config = pointed(ward / "alice.toml", "coordinator", f"localhost:{port}")
        sentence = examined(config).only("coordinator", "fault")
    assert sentence == (
        f"coordinator = localhost:{port} leads to aggregator/aggregator in federation ward and not to the"
        " coordinator: correct `coordinator` in this node's file"
    )
    assert methods == []


def test_a_peer_that_is_stopping_is_told(ward: Path) -> None:
    with standing(ward / "aggregator", Says(serving=False)) as (port, _):
        sentence = examined(aggregator_at(ward, port)).only("aggregator", "fault")
    assert sentence.endswith(
        "is starting or stopping, or its disk is full: ask again in a moment, or see its log"
    )


def test_a_peer_that_does_not_answer_after_its_handshake_is_told(ward: Path) -> None:
    class Broken(health.HealthServicer):
        def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's
            del request
            context.abort(grpc.StatusCode.UNAVAILABLE, "the disk is gone")

    with standing(ward / "aggregator", Broken()) as (port, _):
        sentence = examined(aggregator_at(ward, port)).only("aggregator", "fault")
    assert sentence == (
        f"aggregator/aggregator in federation ward at localhost:{port} does not say whether it is up"
        " (the disk is gone): see its log"
    )


def test_a_peer_of_another_protocol_is_a_fault_that_names_both_versions(ward: Path) -> None:
    theirs = Says(("cairn-protocol", str(PROTOCOL + 1)), ("cairn-software", "9.9.9"))
    with standing(ward / "aggregator", theirs) as (port, _):
        sentence = examined(aggregator_at(ward, port)).only("aggregator", "fault")
    assert f"which speaks version {PROTOCOL} of the protocol" in sentence
    assert f"the peer is Cairn 9.9.9, which speaks version {PROTOCOL + 1}" in sentence
    assert "install the same release of Cairn on both" in sentence


def test_a_peer_that_says_no_version_is_a_note(ward: Path) -> None:
    with standing(ward / "aggregator", Says()) as (port, _):
        found = examined(aggregator_at(ward, port))
    assert "is of a Cairn that says no version" in found.only("aggregator", "note")
    assert found.of("clock", "fault") == []


@pytest.mark.parametrize(
    ("ahead", "word"), [(timedelta(hours=-1), "ahead of"), (timedelta(hours=1), "behind")]
)
def test_a_clock_that_differs_from_a_peers_is_a_fault(
    ward: Path, ahead: timedelta, word: str
) -> None:
    unix_ms = int((time.time() + ahead.total_seconds()) * 1000)
    theirs = Says(("cairn-protocol", str(PROTOCOL)), ("cairn-unix-ms", str(unix_ms)))
    with standing(ward / "aggregator", theirs) as (port, _):
        sentence = examined(aggregator_at(ward, port)).only("clock", "fault")
    seconds = int(sentence.split(" is ")[1].split()[0])
    assert abs(seconds - 3600) <= 60
    assert f"seconds {word} that of the aggregator at localhost:{port}" in sentence
    assert "set whichever is wrong" in sentence
