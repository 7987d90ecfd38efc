"""An owner that is slow, silent, late, or everywhere at once: the others finish on time."""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from threading import Event
from typing import Any

import grpc
import pytest

from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.messages import PROTOCOL
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc
from cairn.v1 import round_pb2 as pb
from tests.chaos.puppet import LEASE_SECONDS, Puppet
from tests.hostile.checks import bounded, check_one_hot, state_digest, written_refusals
from tests.hostile.hasty import CALL_SECONDS, IDLE_SECONDS
from tests.hostile.owners import (
    EXHAUSTED,
    HASTY,
    INVALID,
    PRECONDITION,
    Part,
    an_aggregator,
    average_of,
    ends_without,
    hot,
    joined_round,
    others_than,
    refuses_owner,
    refuses_update,
    silent_after,
)
from tests.scenarios.processes import PATIENCE, until
from tests.service.network import FEDERATION, OWNERS, SECONDS, Network, OpenRound, refused

ENDED_WITHIN = IDLE_SECONDS + PATIENCE
CUT_OFF = {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
MIB = 1 << 20
LARGE = Schema.of([TensorSpec("weight", "F32", (2 * MIB,))])


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    yield from an_aggregator(tmp_path_factory, HASTY)


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Puppet]:
    """An aggregator whose clock stands still but where the test puts it on."""
    network = Puppet(tmp_path_factory.mktemp("timed"), floor=3)
    yield network
    network.stop()


@pytest.fixture
def opened(network: Network) -> OpenRound:
    return joined_round(network)


def begin(
    network: Network, owner: str, parts: Sequence[Part], goes_on: Event, seconds: float
) -> Any:
    """Begin a stream that falls silent after `parts`."""
    stream = silent_after(parts, goes_on)
    return network.intake(owner).SubmitUpdate.future(stream, timeout=seconds)


def finish(opened: OpenRound, *owners: str) -> None:
    """Have honest owners join and push. Like a node they call again where an idle connection ended just then."""

    def again_where_cut_off(call: Callable[[], object]) -> bool:
        try:
            call()
        except grpc.RpcError as error:
            cut_off: Any = error
            if cut_off.code() not in CUT_OFF:
                raise
            return False
        return True

    for owner in owners:
        for call in (partial(opened.join, owner), partial(opened.push, owner, hot(owner))):
            until(partial(again_where_cut_off, call), f"{owner} is answered")


def may_decline(opened: OpenRound, owner: str) -> bool:
    try:
        opened.decline(owner, pb.REASON_STOPPING)
    except grpc.RpcError as error:
        refusal: Any = error
        assert "connections already" in refusal.details()
        return False
    return True


def test_streams_that_fall_silent_are_ended_and_the_others_finish_on_time(
    network: Network,
) -> None:
    """Alice is silent before her header, after it, and after a chunk; bob after all but his commit."""
    opened = joined_round(network)
    large = joined_round(network, LARGE)
    header, chunk, _ = opened.parts(hot("alice"))
    half = large.parts(bytes(8 * MIB))[:4]
    goes_on = Event()
    calls = [
        begin(network, owner, parts, goes_on, 2 * ENDED_WITHIN)
        for owner, parts in (
            ("alice", []),
            ("alice", [header]),
            ("alice", half),
            ("bob", [header, chunk]),
            ("bob", []),
            ("bob", half),
        )
    ]
    finish(opened, "carol")
    large.push("carol", bytes(8 * MIB))
    # Who has sent a header has longer than who has not.
    assert not any(calls[number].done() for number in (1, 2, 3, 5))
    for owner in ("dave", "erin"):
        finish(opened, owner)
        large.push(owner, bytes(8 * MIB))
    until(lambda: all(call.done() for call in calls), "all are ended", ENDED_WITHIN)
    assert {call.code() for call in calls} == {grpc.StatusCode.CANCELLED}
    goes_on.set()
    for ending in (opened, large):
        for owner in ("alice", "bob"):
            ending.decline(owner, pb.REASON_STOPPING)
        assert ending.ends().statement.contributors == 3
    _, payload = opened.collect()
    assert payload == average_of(["carol", "dave", "erin"])


def test_a_repeated_push_that_falls_silent_after_the_rounds_end_is_ended_too(
    network: Network,
) -> None:
    """A repetition is let in after the end, for its receipt, and must not stay for ever."""
    opened = joined_round(network, LARGE)
    for owner in OWNERS:
        opened.push(owner, bytes(8 * MIB))
    opened.ends()
    goes_on = Event()
    again = begin(network, "alice", opened.parts(bytes(8 * MIB))[:3], goes_on, 2 * ENDED_WITHIN)
    try:
        until(again.done, "the repetition is ended", ENDED_WITHIN)
        assert again.code() is grpc.StatusCode.CANCELLED
    finally:
        again.cancel()
        goes_on.set()


def test_a_push_that_trickles_is_ended_with_the_round(timed: Puppet) -> None:
    opened = joined_round(timed, deadline=LEASE_SECONDS - 1)
    goes_on = Event()
    parts = opened.parts(hot("alice"))[:2]
    call = begin(timed, "alice", parts, goes_on, 2 * SECONDS)
    call.initial_metadata()  # its turn has come
    for owner in others_than("alice"):
        opened.push(owner, hot(owner))
    timed.advance(LEASE_SECONDS - 1)
    ended = opened.ends()
    assert ended.exclusions == {"alice": "DEADLINE"}
    assert ended.payload == average_of(others_than("alice"))
    until(call.done, "the push is ended")
    assert call.code() is grpc.StatusCode.CANCELLED
    goes_on.set()


def test_a_thousand_streams_of_one_owner_leave_the_others_alone(network: Network) -> None:
    opened = joined_round(network)
    key, certificate = network.credentials["alice"]
    credentials = grpc.ssl_channel_credentials(network.root, key, certificate)
    goes_on = Event()
    apart = [("grpc.use_local_subchannel_pool", 1)]
    with ExitStack() as stack, bounded(network.node.pid, 64 * MIB):
        channels = [
            stack.enter_context(grpc.secure_channel(network.intake_at, credentials, apart))
            for _ in range(20)
        ]
        stubs: list[Any] = [aggregator_pb2_grpc.IntakeServiceStub(c) for c in channels]
        header = opened.parts(hot("alice"))[0]
        calls = [
            stubs[n % 20].SubmitUpdate.future(silent_after([header], goes_on), timeout=600)
            for n in range(1000)
        ]
        finish(opened, *others_than("alice"))
        until(lambda: sum(call.done() for call in calls) >= 999, "all but one are refused")
        ended = [call for call in calls if call.done()]
        # A connection that has no call for a second is ended; a call that begins just then goes with it.
        codes = {call.code() for call in ended}
        assert EXHAUSTED in codes
        assert codes <= {EXHAUSTED, *CUT_OFF}
        goes_on.set()
        until(lambda: all(call.done() for call in calls), "the last is ended")
    alice = f"spiffe://{FEDERATION}/owner/alice"
    assert (alice, "SubmitUpdate") in {(c, m) for c, m, _ in written_refusals(network.state)}
    until(lambda: may_decline(opened, "alice"), "her many connections are forgotten")
    assert opened.ends().payload == average_of(others_than("alice"))


def test_two_thousand_connections_without_a_handshake_hurt_nobody_and_are_closed(
    network: Network,
) -> None:
    opened = joined_round(network)
    host, _, port = network.intake_at.rpartition(":")
    with ExitStack() as stack, bounded(network.node.pid, 128 * MIB):
        idle = [
            stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(2000)
        ]
        for connection in idle[:1000]:
            connection.sendall(b"\x16\x03\x01\x02\x00\x01")  # how a handshake begins
        finish(opened, *OWNERS)
        for connection in idle:
            # gRPC itself would wait for a handshake for two minutes.
            connection.settimeout(CALL_SECONDS + 60)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    check_one_hot(opened.ends(), OWNERS)


def test_a_call_without_a_deadline_is_refused(network: Network) -> None:
    opened = joined_round(network)
    stub = network.intake("bob")
    request = aggregator_pb2.JoinRoundRequest(
        manifest_digest=opened.digest, join=True, protocol=PROTOCOL
    )
    with refuses_owner(network, "bob", "JoinRound", INVALID, "NO_DEADLINE"):
        stub.JoinRound(request)
    with refuses_owner(network, "bob", "JoinRound", INVALID, "NO_DEADLINE"):
        stub.JoinRound(request, timeout=9 * 24 * 3600)
    with refuses_update(network, "bob", "NO_DEADLINE"):
        stub.SubmitUpdate(iter(opened.parts(hot("bob"))))
    with refuses_owner(network, "bob", "GetReceipt", INVALID, "NO_DEADLINE"):
        stub.GetReceipt(aggregator_pb2.GetReceiptRequest(manifest_digest=opened.digest))
    ends_without(opened, "bob")


def test_what_comes_after_the_seal_changes_nothing(network: Network) -> None:
    opened = joined_round(network)
    released = ends_without(opened, "erin").payload
    statement, _ = opened.collect()
    with refuses_update(network, "erin", "ROUND_ENDED", PRECONDITION):
        opened.push("erin", hot("erin"))
    with refuses_owner(network, "erin", "JoinRound", PRECONDITION, "ROUND_ENDED"):
        opened.join("erin")
    with refuses_owner(network, "erin", "JoinRound", PRECONDITION, "ROUND_ENDED"):
        opened.decline("erin", pb.REASON_STOPPING)
    with refuses_update(network, "dave", "CONFLICT", grpc.StatusCode.ALREADY_EXISTS):
        opened.push("dave", hot("erin"))
    assert opened.collect() == (statement, released)


def test_an_update_whose_last_bytes_come_after_the_seal_is_not_counted(timed: Puppet) -> None:
    opened = joined_round(timed, deadline=LEASE_SECONDS - 1)
    header, chunk, last = opened.parts(hot("erin"))
    goes_on, begun = Event(), Event()

    def late() -> Iterator[Part]:
        yield header
        yield chunk
        begun.set()
        goes_on.wait(SECONDS)
        yield last

    call = timed.intake("erin").SubmitUpdate.future(late(), timeout=SECONDS)
    assert begun.wait(SECONDS)
    for owner in others_than("erin"):
        opened.push(owner, hot(owner))
    timed.advance(LEASE_SECONDS - 1)
    released = opened.ends()
    before = state_digest(timed.state)
    goes_on.set()
    with pytest.raises(grpc.RpcError):
        call.result()
    assert released.exclusions == {"erin": "DEADLINE"}
    assert released.payload == average_of(others_than("erin"))
    assert opened.collect()[1] == released.payload
    assert state_digest(timed.state) == before
    with refused(grpc.StatusCode.NOT_FOUND, reason="NOT_FOUND"):
        opened.receipt("erin")
