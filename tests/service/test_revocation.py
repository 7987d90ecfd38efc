"""Who was let in once is looked at again: at every call, and whenever a certificate is renewed."""

import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

import cairn.transport.server
from cairn.errors import CallerNotAllowed
from cairn.identity.authority import Authority, Subject, issue, new_key, new_request
from cairn.identity.certified import Certified
from cairn.identity.names import NodeName
from cairn.runtime.clock import Clock
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc, coordinator_pb2
from cairn.v1 import round_pb2 as pb
from tests.scenarios.processes import until
from tests.service.door import (
    AGGREGATOR,
    ALICE,
    BOB,
    COORDINATOR,
    SECONDS,
    Calls,
    Door,
    Home,
    Ward,
    dialled,
)
from tests.service.network import Network, refused

DENIED = grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
def ward(tmp_path: Path) -> Ward:
    return Ward(tmp_path)


@pytest.fixture
def aggregator(ward: Ward) -> Home:
    return ward.home(AGGREGATOR)


@pytest.fixture
def alice(ward: Ward) -> Home:
    return ward.home(ALICE)


def attend(calls: Calls) -> Any:
    """Open a long stream, and read its first event."""
    stream = calls.invitations.Attend(coordinator_pb2.AttendRequest(), timeout=SECONDS)
    next(stream)
    return stream


def push_slowly(calls: Calls, chunks: int, go_on: threading.Event) -> Any:
    """Begin a push of `chunks` bytes that ends after `go_on`; returns the call."""

    def parts() -> Iterator[aggregator_pb2.SubmitUpdateRequest]:
        yield aggregator_pb2.SubmitUpdateRequest(chunk=b"x")
        go_on.wait(SECONDS)
        for _ in range(chunks - 1):
            yield aggregator_pb2.SubmitUpdateRequest(chunk=b"x")

    return calls.intake.SubmitUpdate.future(parts(), timeout=SECONDS)


def test_a_node_that_is_no_longer_admitted_is_refused_at_its_next_call_on_the_same_connection(
    ward: Ward, aggregator: Home, alice: Home
) -> None:
    removed: set[NodeName] = set()

    def admits(caller: Certified) -> None:
        if caller.node in removed:
            raise CallerNotAllowed(f"{caller.node} is not on the roster", pb.REASON_UNKNOWN_OWNER)

    with Door(aggregator, admits=admits) as door:
        calls, bob = dialled(door, alice), dialled(door, ward.home(BOB))
        assert calls.join() == 7
        removed.add(ALICE)
        with refused(DENIED, "not on the roster", "UNKNOWN_OWNER"):
            calls.join()
        with refused(DENIED, "not on the roster", "UNKNOWN_OWNER"):
            push_slowly(calls, 1, threading.Event()).result()
        assert bob.join() == 7
        assert [(who, method) for who, method, _ in door.refused] == [
            (ALICE, "/cairn.v1.IntakeService/JoinRound"),
            (ALICE, "/cairn.v1.IntakeService/SubmitUpdate"),
        ]
        removed.clear()
        assert calls.join() == 7


def test_a_certificate_that_has_expired_since_the_handshake_is_refused_at_the_next_call(
    aggregator: Home, alice: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = timedelta()
    present = Clock.unix_ms
    monkeypatch.setattr(
        Clock, "unix_ms", lambda clock: present(clock) + late // timedelta(milliseconds=1)
    )
    with Door(aggregator) as door:
        calls = dialled(door, alice)
        late = timedelta(hours=23)
        assert calls.join() == 7
        late = timedelta(hours=25)
        with refused(DENIED, "expired on", "NOT_ALLOWED"):
            calls.join()
        with refused(DENIED, "cairn request"):
            calls.join()


def test_a_certificate_that_expired_before_the_handshake_opens_no_connection(
    ward: Ward, aggregator: Home, alice: Home
) -> None:
    key, certificate = ward.issued(ALICE, timedelta(minutes=-1))
    with Door(aggregator) as door:
        credentials = grpc.ssl_channel_credentials(ward.authority.certificate, key, certificate)
        with (
            grpc.secure_channel(door.address, credentials) as channel,
            refused(grpc.StatusCode.UNAVAILABLE),
        ):
            Calls(channel).join()
        assert not door.callers
        assert dialled(door, alice).join() == 7


def test_an_owner_that_renews_its_certificate_calls_under_it_from_the_next_call_on(
    ward: Ward, aggregator: Home, alice: Home
) -> None:
    """The stubs are those made at the start, and what is under way goes on."""
    with Door(aggregator) as door:
        calls = dialled(door, alice)
        stream, go_on = attend(calls), threading.Event()
        push = push_slowly(calls, 5, go_on)
        until(lambda: len(door.certificates) == 2, "stream and push are under way")
        before, renewed = alice.certificate.read_bytes(), ward.renew(alice)
        assert calls.join() == 7
        assert calls.join() == 7
        assert door.certificates == [before, before, renewed, renewed]
        go_on.set()
        assert push.result().receipt.type == "5"
        door.released.set()
        assert [event.finished.job for event in stream] == ["j"]


def test_a_coordinator_that_renews_its_certificate_calls_under_it_from_the_next_call_on(
    ward: Ward, aggregator: Home
) -> None:
    home, request = ward.home(COORDINATOR), aggregator_pb2.AbortRoundRequest()
    with Door(aggregator) as door:
        stub = aggregator_pb2_grpc.ReleaseServiceStub(dialled(door, home).channel)
        stub.AbortRound(request, timeout=SECONDS)
        before, renewed = home.certificate.read_bytes(), ward.renew(home)
        stub.AbortRound(request, timeout=SECONDS)
        assert door.certificates == [before, renewed]


def test_the_old_connection_is_closed_after_its_last_call(
    ward: Ward, aggregator: Home, alice: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Door(aggregator) as door:
        calls = dialled(door, alice)
        stream = attend(calls)
        line = calls.channel._line  # type: ignore[attr-defined]  # to see its end
        ward.renew(alice)
        calls.join()
        closing = threading.Event()
        close = line.channel.close

        def closed() -> None:
            close()
            closing.set()

        monkeypatch.setattr(line.channel, "close", closed)
        assert not closing.is_set()
        door.released.set()
        list(stream)
        assert closing.wait(SECONDS)
        with pytest.raises(ValueError, match="closed channel"):
            line.channel.unary_unary("/cairn.v1.IntakeService/JoinRound")(b"", timeout=SECONDS)
        assert calls.join() == 7


@pytest.mark.parametrize("node", [AGGREGATOR, COORDINATOR], ids=str)
def test_a_listening_node_that_renews_its_certificate_shows_the_new_one_to_who_connects_next(
    ward: Ward, node: NodeName
) -> None:
    listening, owner = ward.home(node), ward.home(ALICE)
    with Door(listening) as door:
        old = dialled(door, owner)
        stream = attend(old)
        renewed = ward.renew(listening)
        assert shown_by(door.address) == renewed
        assert old.join() == 7  # what is connected goes on
        assert dialled(door, owner).join() == 7
        door.released.set()
        assert [event.finished.job for event in stream] == ["j"]


def test_while_an_aggregator_renews_its_certificate_owners_may_pin_the_old_and_the_new_one(
    ward: Ward, aggregator: Home, alice: Home
) -> None:
    old = aggregator.certificate.read_bytes()
    key, new = ward.issued(AGGREGATOR)
    with Door(aggregator) as door:
        calls = dialled(door, alice, ward.pinned(old))
        assert calls.join() == 7
        ward.pinned(old, new)  # writes the file
        assert calls.join() == 7
        aggregator.key.write_bytes(key)
        aggregator.certificate.write_bytes(new)
        assert shown_by(door.address) == new
        assert dialled(door, alice, ward.pinned(old, new)).join() == 7
        with refused(grpc.StatusCode.UNAVAILABLE, "CERTIFICATE_VERIFY_FAILED"):
            dialled(door, alice, ward.pinned(old)).join()
        ward.pinned(new)
        assert calls.join() == 7


def test_a_half_written_pair_leaves_the_old_certificate_in_use(
    ward: Ward, aggregator: Home, alice: Home
) -> None:
    with Door(aggregator) as door:
        calls = dialled(door, alice)
        before = aggregator.certificate.read_bytes(), alice.certificate.read_bytes()
        for home in (aggregator, alice):
            home.key.write_bytes(ward.issued(home.node)[0])  # the certificate is still to come
        assert shown_by(door.address) == before[0]
        assert calls.join() == 7
        assert door.certificates[-1] == before[1]
        renewed = ward.renew(aggregator), ward.renew(alice)
        assert shown_by(door.address) == renewed[0]
        assert calls.join() == 7
        assert door.certificates[-1] == renewed[1]


def test_a_renewed_certificate_of_another_node_is_not_taken(
    ward: Ward, aggregator: Home, alice: Home
) -> None:
    with Door(aggregator) as door, capture_logs() as logs:
        calls = dialled(door, alice)
        ward.renew(alice, node=BOB)
        for _ in range(3):
            assert calls.join() == 7
        assert door.callers == [ALICE] * 3
    (logged,) = [line for line in logs if line["log_level"] == "error"]  # once, not at every call
    assert f"is the certificate of {BOB}, but this node is {ALICE}" in logged["why"]


def test_a_stream_and_a_push_outlast_the_age_at_which_their_connection_ends(
    aggregator: Home, alice: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    aged = dict(cairn.transport.server._LISTENING) | {"grpc.max_connection_age_ms": 500}
    monkeypatch.setattr(cairn.transport.server, "_LISTENING", list(aged.items()))
    peers: list[str] = []
    with Door(aggregator) as door:
        note = door._note

        def noted(context: grpc.ServicerContext) -> None:
            peers.append(context.peer())
            note(context)

        monkeypatch.setattr(door, "_note", noted)
        calls = dialled(door, alice)
        stream, go_on = attend(calls), threading.Event()
        push = push_slowly(calls, 5, go_on)
        until(lambda: len(peers) == 2, "stream and push are under way")

        def over_a_new_connection() -> bool:
            assert calls.join() == 7  # no call fails meanwhile
            return peers[-1] != peers[0]

        until(over_a_new_connection, "the first connection has come of age", SECONDS)
        go_on.set()
        assert push.result().receipt.type == "5"
        door.released.set()
        assert [event.finished.job for event in stream] == ["j"]


@pytest.fixture(scope="module")
def own_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """An aggregator process whose files these tests change."""
    network = Network(tmp_path_factory.mktemp("own"))
    yield network
    network.stop()


def test_an_owner_removed_from_the_aggregators_file_is_refused_at_its_next_call(
    own_network: Network,
) -> None:
    """While it is connected and has joined a round, at every method; the others go on."""
    config = own_network.directory / "aggregator.toml"
    opened = own_network.job(owners=["alice", "bob", "carol"]).open(["alice", "bob", "carol"])
    for owner in ("alice", "bob", "carol"):
        opened.join(owner)
    before = config.read_text()
    assert '"carol", ' in before
    config.write_text(before.replace('"carol", ', ""))
    statement = aggregator_pb2.GetStatementRequest(manifest_digest=opened.digest)
    attempts: list[Callable[[], object]] = [
        lambda: opened.join("carol"),
        lambda: opened.push("carol", bytes(16)),
        lambda: opened.receipt("carol"),
        lambda: own_network.record("carol").GetStatement(statement, timeout=SECONDS),
    ]
    for attempt in attempts:
        with refused(DENIED, "not on the roster", "UNKNOWN_OWNER"):
            attempt()
    opened.join("alice")
    opened.push("bob", bytes(16))
    config.write_text(before)
    opened.join("carol")


def test_an_aggregator_process_shows_its_renewed_certificate_without_a_restart(
    own_network: Network,
) -> None:
    home = own_network.directory / "aggregator"
    certificate, key = home / "node.crt", home / "node.key"
    authority = Authority(
        own_network.root, (own_network.directory / "authority/authority.key").read_bytes()
    )
    old, new_key_pem, subject = certificate.read_bytes(), new_key(), Subject(AGGREGATOR)
    request = new_request(subject, new_key_pem)
    renewed = issue(authority, request, subject, datetime.now(UTC))
    opened = own_network.job().open(["alice", "bob"])
    opened.join("alice")
    key.write_bytes(new_key_pem)
    assert shown_by(own_network.intake_at) == old  # the pair is only half there
    certificate.write_bytes(renewed)
    assert shown_by(own_network.intake_at) == shown_by(own_network.release_at) == renewed
    opened.join("alice")  # over the connection that it has


def test_a_connection_ends_within_ten_minutes_and_a_call_on_it_within_a_week() -> None:
    stated = dict(cairn.transport.server._LISTENING)
    assert stated["grpc.max_connection_age_ms"] == 10 * 60 * 1000
    assert stated["grpc.max_connection_age_grace_ms"] == 7 * 24 * 60 * 60 * 1000


def shown_by(address: str) -> bytes:
    """The certificate that a listening node shows now, as the standard library reads it."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port))).encode()
