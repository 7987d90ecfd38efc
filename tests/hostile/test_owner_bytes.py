"""An owner that sends bytes that no owner would: bombs, unknown and nested fields, text that is none."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import grpc
import pytest

from cairn.protocol.messages import PROTOCOL
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.hostile.checks import bounded, state_digest
from tests.hostile.owners import (
    EXHAUSTED,
    INVALID,
    TURNS,
    an_aggregator,
    ends_without,
    hot,
    joined_round,
    others_than,
    refuses_owner,
    refuses_update,
    silent_after,
)
from tests.service.network import OWNERS, SECONDS, Network, OpenRound, refused

INTAKE = "/cairn.v1.IntakeService"
MIB = 1 << 20


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    yield from an_aggregator(tmp_path_factory)


@pytest.fixture
def attacker() -> str:
    return next(TURNS)


@pytest.fixture
def opened(network: Network) -> OpenRound:
    return joined_round(network)


def raw(network: Network, who: str, method: str, *messages: bytes, **options: Any) -> None:
    """Send bytes, without a stub that knows what they should be."""
    channel: Any = network.channel(who, network.intake_at)
    if method == "SubmitUpdate":
        channel.stream_unary(f"{INTAKE}/{method}")(iter(messages), timeout=SECONDS, **options)
    else:
        channel.unary_unary(f"{INTAKE}/{method}")(messages[0], timeout=SECONDS, **options)


@contextmanager
def connection_kept(opened: OpenRound, who: str) -> Iterator[None]:
    """Have a stream under way. A connection that has none is ended after a second, and a bomb takes long to pack."""
    goes_on = Event()
    stream = silent_after(opened.parts(hot(who))[:1], goes_on)
    kept = opened.job.network.intake(who).SubmitUpdate.future(stream, timeout=SECONDS)
    kept.initial_metadata()  # its turn has come
    try:
        yield
    finally:
        kept.cancel()
        goes_on.set()


@pytest.mark.parametrize("method", ["JoinRound", "SubmitUpdate", "GetReceipt"])
def test_a_gzip_bomb_is_not_unpacked(
    network: Network, attacker: str, opened: OpenRound, method: str
) -> None:
    before = state_digest(network.state)
    bomb = bytes(64 * MIB)
    with (
        connection_kept(opened, attacker),
        bounded(network.node.pid),
        refused(EXHAUSTED, "larger than max"),
    ):
        raw(network, attacker, method, bomb, compression=grpc.Compression.Gzip)
    assert state_digest(network.state) == before
    ends_without(opened, attacker)


def test_metadata_of_20_kib_is_refused(network: Network, attacker: str, opened: OpenRound) -> None:
    before = state_digest(network.state)
    with bounded(network.node.pid), refused(EXHAUSTED, "metadata"):
        raw(network, attacker, "JoinRound", b"", metadata=(("note", "x" * 20_480),))
    assert state_digest(network.state) == before
    ends_without(opened, attacker)


def field(number: int, value: bytes) -> bytes:
    """A length-delimited field, encoded by hand."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def join_bytes(opened: OpenRound) -> bytes:
    return aggregator_pb2.JoinRoundRequest(
        manifest_digest=opened.digest, join=True, protocol=PROTOCOL
    ).SerializeToString()


def test_unknown_fields_of_a_mebibyte_change_nothing_and_stay_nowhere(
    network: Network, attacker: str, opened: OpenRound
) -> None:
    before = state_digest(network.state)
    with bounded(network.node.pid):
        for number in range(100, 120):
            raw(network, attacker, "JoinRound", join_bytes(opened) + field(number, bytes(MIB)))
    header, chunk, last = (part.SerializeToString() for part in opened.parts(hot(attacker)))
    with bounded(network.node.pid):
        raw(network, attacker, "SubmitUpdate", header + field(100, bytes(MIB)), chunk, last)
    assert state_digest(network.state) == before
    for owner in others_than(attacker):
        opened.push(owner, hot(owner))
    assert opened.ends().statement.contributors == len(OWNERS)


def test_fields_nested_without_end_are_malformed(
    network: Network, attacker: str, opened: OpenRound
) -> None:
    nested = b"\x0b" * MIB  # groups that begin and never end
    with refuses_owner(network, attacker, "JoinRound", INVALID, "MALFORMED"):
        raw(network, attacker, "JoinRound", join_bytes(opened) + nested)
    message = b""
    for number in range(200):
        message = field(number % 4 + 1, message + bytes(100))
    with refuses_update(network, attacker, "MALFORMED"):
        raw(network, attacker, "SubmitUpdate", message)
    ends_without(opened, attacker)


def test_text_that_is_not_utf_8_is_malformed(
    network: Network, attacker: str, opened: OpenRound
) -> None:
    with refuses_owner(network, attacker, "JoinRound", INVALID, "MALFORMED"):
        raw(network, attacker, "JoinRound", join_bytes(opened) + field(6, b"\xff\xfe"))
    metric = field(1, b"\xc3\x28") + b"\x11" + bytes(8)
    header = opened.header().SerializeToString() + field(4, metric)
    with refuses_update(network, attacker, "MALFORMED"):
        raw(network, attacker, "SubmitUpdate", field(1, header))
    ends_without(opened, attacker)


@pytest.mark.parametrize("reason", [0, max(pb.Reason.values()) + 1, 999, -1])
def test_an_unknown_reason_is_never_a_default(
    network: Network, attacker: str, opened: OpenRound, reason: int
) -> None:
    request = aggregator_pb2.JoinRoundRequest(manifest_digest=opened.digest, protocol=PROTOCOL)
    request.reason = reason  # type: ignore[assignment]  # what no good owner sends
    with refuses_owner(network, attacker, "JoinRound", INVALID, "MALFORMED"):
        network.intake(attacker).JoinRound(request, timeout=SECONDS)
    request.join, request.reason = True, pb.REASON_STOPPING  # takes part, and gives a reason not to
    with refuses_owner(network, attacker, "JoinRound", INVALID, "MALFORMED"):
        network.intake(attacker).JoinRound(request, timeout=SECONDS)
    ends_without(opened, attacker)


@pytest.mark.parametrize("first", [0, 2**63, 2**64 - 1])
def test_an_entry_that_no_ledger_can_have_is_refused(
    network: Network, attacker: str, first: int
) -> None:
    request = aggregator_pb2.ListEntriesRequest(first=first, limit=1)
    with refuses_owner(network, attacker, "ListEntries", INVALID, "MALFORMED"):
        network.record(attacker).ListEntries(request, timeout=SECONDS)


@pytest.mark.parametrize("limit", [0, 1001, 2**32 - 1])
def test_more_entries_than_one_answer_may_have_are_refused(
    network: Network, attacker: str, limit: int
) -> None:
    request = aggregator_pb2.ListEntriesRequest(first=1, limit=limit)
    with refuses_owner(network, attacker, "ListEntries", INVALID, "MALFORMED"):
        network.record(attacker).ListEntries(request, timeout=SECONDS)
