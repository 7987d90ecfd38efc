"""What one caller may send and have under way: bytes that are no message, floods, idle connections."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from cairn.identity.names import Role
from cairn.transport import server
from cairn.transport.access import ACCESS
from cairn.transport.channel import dial
from cairn.v1 import aggregator_pb2
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
from tests.service.network import refused

INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
INTAKE = "/cairn.v1.IntakeService"
METHODS = [path for path, roles in ACCESS.items() if roles]
TAKES_A_STREAM = {f"{INTAKE}/SubmitUpdate", "/cairn.v1.ReleaseService/SubmitModel"}
ANSWERS_A_STREAM = {
    "/cairn.v1.InvitationService/Attend",
    "/cairn.v1.InvitationService/FetchModel",
    "/cairn.v1.ReleaseService/WatchRound",
    "/cairn.v1.ReleaseService/CollectRelease",
    "/cairn.v1.RecordService/ListEntries",
}
NO_MESSAGES = {
    "random": bytes.fromhex("ffd8ffe000104a46"),
    "cut off": b"\x0a\x20only a few of thirty-two",
    "groups without an end": b"\x0b" * 1000,
    "a tag of field 0": b"\x00\x01",
    "the largest length": b"\x0a\xff\xff\xff\xff\x0f",
}


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Ward:
    return Ward(tmp_path_factory.mktemp("ward"))


@pytest.fixture(scope="module")
def homes(ward: Ward) -> dict[str, Home]:
    return {node.name: ward.home(node) for node in (AGGREGATOR, COORDINATOR, ALICE, BOB)}


@pytest.fixture(scope="module")
def shared(homes: dict[str, Home]) -> Iterator[Door]:
    """For tests that leave nothing under way."""
    with Door(homes["aggregator"]) as door:
        yield door


@pytest.fixture
def door(homes: dict[str, Home]) -> Iterator[Door]:
    with Door(homes["aggregator"]) as door:
        yield door


@pytest.fixture(scope="module")
def send(shared: Door, homes: dict[str, Home]) -> Iterator[Callable[..., Any]]:
    """Sends raw bytes to a method as a node that may call it, and reads the first answer."""
    with ExitStack() as stack:
        channels = {
            role: stack.enter_context(dial(shared.address, homes[name].identity()))
            for role, name in ((Role.OWNER, "alice"), (Role.COORDINATOR, "coordinator"))
        }

        def call(path: str, *messages: bytes, **options: Any) -> Any:
            channel: Any = channels[Role.OWNER if Role.OWNER in ACCESS[path] else Role.COORDINATOR]
            options = {"timeout": SECONDS} | options
            if path in ANSWERS_A_STREAM:
                return next(channel.unary_stream(path)(messages[0], **options))
            if path in TAKES_A_STREAM:
                return channel.stream_unary(path, bytes)(iter(messages), **options)
            return channel.unary_unary(path)(messages[0], **options)

        yield call


@pytest.mark.parametrize("path", METHODS)
@pytest.mark.parametrize("what", NO_MESSAGES)
def test_bytes_that_are_no_message_are_malformed_at_every_method(
    shared: Door, send: Callable[..., Any], path: str, what: str
) -> None:
    shared.refused.clear()
    with refused(INVALID, "not the message", "MALFORMED"):
        send(path, NO_MESSAGES[what])
    ((_, method, _),) = shared.refused  # once
    assert method == path


def test_a_stream_is_malformed_at_whichever_message_is(send: Callable[..., Any]) -> None:
    chunk = aggregator_pb2.SubmitUpdateRequest(chunk=b"x").SerializeToString()
    with refused(INVALID, "not the message", "MALFORMED"):
        send(f"{INTAKE}/SubmitUpdate", chunk, chunk, b"\xff")
    assert send(f"{INTAKE}/SubmitUpdate", chunk, chunk)


def test_a_text_that_is_not_utf_8_is_malformed(send: Callable[..., Any]) -> None:
    with refused(INVALID, "not the message", "MALFORMED"):
        send("/cairn.v1.InvitationService/Attend", b"\x0a\x02\xff\xfe")


@pytest.mark.parametrize("path", [f"{INTAKE}/JoinRound", f"{INTAKE}/SubmitUpdate"])
def test_a_message_that_is_too_long_is_refused(send: Callable[..., Any], path: str) -> None:
    with refused(EXHAUSTED, "larger than max"):
        send(path, bytes(2 << 20))


def is_sent(send: Callable[..., Any], path: str, message: bytes) -> bool:
    """Send it, compressed; not where it met the end of a connection that was idle."""
    try:
        send(path, message, compression=grpc.Compression.Gzip)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return True


@pytest.mark.parametrize("path", [f"{INTAKE}/JoinRound", f"{INTAKE}/SubmitUpdate"])
def test_a_message_that_unpacks_to_too_much_is_refused(send: Callable[..., Any], path: str) -> None:
    with refused(EXHAUSTED, "larger than max"):
        until(
            # Small enough to be packed before the connection has been idle for a second.
            lambda: is_sent(send, path, bytes(8 << 20)),
            "the bomb meets no idle connection's end",
        )


def test_only_a_jobs_registration_may_be_long_where_jobs_are_registered(
    homes: dict[str, Home],
) -> None:
    """Two bytes of a repeated text become sixteen in memory, so that parsing is not even tried."""
    release = "/cairn.v1.ReleaseService"
    with (
        Door(homes["aggregator"], message_bytes=8 << 20) as door,
        dial(door.address, homes["coordinator"].identity()) as dialled_channel,
    ):
        channel: Any = dialled_channel
        with refused(EXHAUSTED, "1310720 bytes at most", "TOO_MUCH"):
            channel.unary_unary(f"{release}/OpenRound")(bytes(4 << 20), timeout=SECONDS)
        with refused(INVALID, "not the message", "MALFORMED"):  # it was read
            channel.unary_unary(f"{release}/RegisterJob")(bytes(4 << 20), timeout=SECONDS)


def test_metadata_beyond_16_kib_is_refused(send: Callable[..., Any]) -> None:
    with refused(EXHAUSTED, "metadata"):
        send(f"{INTAKE}/JoinRound", b"", metadata=(("note", "x" * 20_480),))


def test_a_stream_without_a_message_to_a_method_that_takes_one_is_refused(
    shared: Door, homes: dict[str, Home]
) -> None:
    with dial(shared.address, homes["alice"].identity()) as channel:
        call: Any = channel.stream_unary(f"{INTAKE}/JoinRound")
        with refused(INVALID, "before its request had come", "MALFORMED"):
            call(iter([]), timeout=SECONDS)


def test_a_caller_may_have_eight_short_calls_under_way_and_hinders_nobody(
    door: Door, homes: dict[str, Home]
) -> None:
    alice, bob = dialled(door, homes["alice"]), dialled(door, homes["bob"])
    receipt = aggregator_pb2.GetReceiptRequest()
    held = [alice.intake.GetReceipt.future(receipt, timeout=SECONDS) for _ in range(8)]
    for _ in held:
        assert door.waiting.acquire(timeout=SECONDS)
    with refused(EXHAUSTED, "8 short calls under way already", "TOO_MUCH"):
        dialled(door, homes["alice"]).join()  # over another connection too
    assert bob.join() == 7
    door.released.set()
    for call in held:
        call.result()

    def may_call_again() -> bool:
        try:
            return alice.join() == 7
        except grpc.RpcError:
            return False

    until(may_call_again, "the eight are over", SECONDS)


def test_a_flood_of_one_owner_does_not_keep_another_waiting(
    door: Door, homes: dict[str, Home]
) -> None:
    """Two thousand calls at once, over ten connections, while bob joins once after another.

    What is admitted of the flood lasts longer than bob's calls may take.
    """
    bob = dialled(door, homes["bob"])
    identity = homes["alice"].identity()
    credentials = grpc.ssl_channel_credentials(
        identity.authority, identity.key, identity.certificate
    )
    apart = [("grpc.use_local_subchannel_pool", 1)]
    with ExitStack() as stack:
        stubs = [
            Calls(stack.enter_context(grpc.secure_channel(door.address, credentials, apart))).intake
            for _ in range(10)
        ]
        request = aggregator_pb2.GetReceiptRequest()
        flood = [stubs[n % 10].GetReceipt.future(request, timeout=9 * SECONDS) for n in range(2000)]
        joined = 0
        while not all(call.done() for call in flood) and joined < 500:
            assert bob.join() == 7
            joined += 1
        assert door.callers.count(ALICE) < 2000  # most were refused
        door.released.set()
        for call in flood:
            call.cancel()


def test_connections_that_never_finish_their_handshake_hurt_nobody_and_are_closed(
    homes: dict[str, Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    sooner = dict(server._LISTENING) | {"grpc.server_handshake_timeout_ms": 2000}
    monkeypatch.setattr(server, "_LISTENING", list(sooner.items()))
    with Door(homes["aggregator"]) as door, ExitStack() as stack:
        host, _, port = door.address.rpartition(":")
        idle = [
            stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(500)
        ]
        for connection in idle[:250]:
            connection.sendall(b"\x16\x03\x01\x02\x00\x01")  # how a handshake begins
        assert dialled(door, homes["bob"]).join() == 7
        for connection in idle:
            connection.settimeout(90)  # gRPC itself would wait for a handshake for two minutes
            try:
                while connection.recv(4096):
                    pass
            except ConnectionResetError:
                pass
        assert dialled(door, homes["alice"]).join() == 7
