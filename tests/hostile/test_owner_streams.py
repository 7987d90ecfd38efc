"""An owner whose stream is not the update it claims to be: refused, and never a byte beyond the schema kept."""

from collections.abc import Iterable, Iterator
from itertools import repeat

import pytest

from cairn.model.schema import Schema, TensorSpec
from tests.hostile.checks import ONE_HOT
from tests.hostile.owners import (
    EXHAUSTED,
    TURNS,
    Part,
    an_aggregator,
    commit,
    ends_without,
    hot,
    joined_round,
    others_than,
    refuses_update,
)
from tests.service.network import Network, OpenRound

MIB = 1 << 20
LARGE = Schema.of([TensorSpec("weight", "F32", (MIB,))])  # 4 MiB
TOTAL = ONE_HOT.total_bytes


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    yield from an_aggregator(tmp_path_factory)


@pytest.fixture
def attacker() -> str:
    return next(TURNS)


@pytest.fixture
def opened(network: Network) -> OpenRound:
    return joined_round(network)


@pytest.mark.parametrize(
    "total", [0, 1, TOTAL - 1, TOTAL + 1, 2 * TOTAL, 2**31, 2**46, 2**63 - 1, 2**64 - 1]
)
def test_a_header_of_another_size_allocates_nothing(
    network: Network, attacker: str, opened: OpenRound, total: int
) -> None:
    with refuses_update(network, attacker, "MALFORMED"):
        opened.push(attacker, hot(attacker), total_bytes=total)
    ends_without(opened, attacker)


@pytest.mark.parametrize(
    ("size", "reason"),
    [(0, "CORRUPT_UPDATE"), (1, "MALFORMED"), (TOTAL - 4, "MALFORMED"), (TOTAL - 1, "MALFORMED")],
)
def test_an_update_that_is_short_is_refused(
    network: Network, attacker: str, opened: OpenRound, size: int, reason: str
) -> None:
    """A chunk that leaves a rest is smaller than the smallest, so it is refused at once."""
    header, chunk, last = opened.parts(hot(attacker))
    parts = [header, *([Part(chunk=chunk.chunk[:size])] if size else []), last]
    with refuses_update(network, attacker, reason):
        opened.submit(attacker, parts)
    ends_without(opened, attacker)


def test_a_large_update_that_lacks_its_last_byte_is_refused(
    network: Network, attacker: str
) -> None:
    opened = joined_round(network, LARGE)
    header, *_, last = opened.parts(bytes(4 * MIB))
    chunks = [bytes(MIB)] * 3 + [bytes(MIB - 1)]
    for sent in (chunks, chunks[:3]):
        with refuses_update(network, attacker, "CORRUPT_UPDATE"):
            opened.submit(attacker, [header, *(Part(chunk=chunk) for chunk in sent), last])
    opened.abort()


@pytest.mark.parametrize("extra", [b"\0", bytes(4), bytes(MIB)])
def test_bytes_beyond_the_schema_are_refused(
    network: Network, attacker: str, opened: OpenRound, extra: bytes
) -> None:
    header, chunk, last = opened.parts(hot(attacker))
    with refuses_update(network, attacker, "TOO_MUCH", EXHAUSTED):
        opened.submit(attacker, [header, chunk, Part(chunk=extra), last])
    with refuses_update(network, attacker, "TOO_MUCH", EXHAUSTED):
        opened.submit(attacker, [header, Part(chunk=(chunk.chunk + extra)[:MIB]), last])
    ends_without(opened, attacker)


OTHER_MODELS = {
    "another type": [TensorSpec("weight", "I32", (5,))],
    "another name": [TensorSpec("weigh", "F32", (5,))],
    "another shape": [TensorSpec("weight", "F32", (5, 1))],
    "two tensors": [TensorSpec("weight", "F32", (2,)), TensorSpec("weight2", "F32", (3,))],
    "an empty tensor more": [TensorSpec("weight", "F32", (5,)), TensorSpec("x", "F32", (0,))],
    "the same bytes in one row": [TensorSpec("weight", "U8", (20,))],
}


@pytest.mark.parametrize("what", OTHER_MODELS)
def test_the_bytes_of_a_model_with_other_tensors_are_refused_though_they_are_as_many(
    network: Network, attacker: str, opened: OpenRound, what: str
) -> None:
    other = Schema.of(OTHER_MODELS[what])
    assert other.total_bytes == TOTAL
    header, chunk, _ = opened.parts(hot(attacker))
    with refuses_update(network, attacker, "CORRUPT_UPDATE"):
        opened.submit(attacker, [header, chunk, commit(other.digest(hot(attacker)))])
    ends_without(opened, attacker)


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(33), bytes(MIB)])
def test_a_commit_without_a_digest_is_refused(
    network: Network, attacker: str, opened: OpenRound, digest: bytes
) -> None:
    header, chunk, _ = opened.parts(hot(attacker))
    with refuses_update(network, attacker, "MALFORMED"):
        opened.submit(attacker, [header, chunk, commit(digest)])
    ends_without(opened, attacker)


def test_other_bytes_than_were_committed_are_refused(
    network: Network, attacker: str, opened: OpenRound
) -> None:
    header, _, last = opened.parts(hot(attacker))
    with refuses_update(network, attacker, "CORRUPT_UPDATE"):
        opened.submit(attacker, [header, Part(chunk=hot("nobody")), last])
    ends_without(opened, attacker)


@pytest.mark.parametrize(
    "order",
    ["", "c", "k", "hhck", "hckc", "hckk", "hckh", "chk", "h", "hc", "hkc", "hxck", "xhck", "hckx"],
)
def test_parts_in_another_order_are_refused(
    network: Network, attacker: str, opened: OpenRound, order: str
) -> None:
    """h is the header, c the chunk, k the commit, x a message without a part."""
    header, chunk, last = opened.parts(hot(attacker))
    part = {"h": header, "c": chunk, "k": last, "x": Part()}
    with refuses_update(network, attacker, "MALFORMED"):
        opened.submit(attacker, [part[letter] for letter in order if letter in part])
    ends_without(opened, attacker)


class Counted:
    """A stream that counts how much of it was sent."""

    def __init__(self, first: Iterable[Part], then: Part) -> None:
        self.sent = 0
        self._first = first
        self._then = then

    def __iter__(self) -> Iterator[Part]:
        yield from self._first
        for part in repeat(self._then, 1_000_000):
            self.sent += 1
            yield part


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_a_stream_of_tiny_chunks_is_ended_at_the_first(
    network: Network, attacker: str, size: int
) -> None:
    opened = joined_round(network, LARGE)
    stream = Counted(opened.parts(bytes(4 * MIB))[:1], Part(chunk=bytes(size)))
    with refuses_update(network, attacker, "MALFORMED"):
        opened.submit(attacker, stream)
    assert stream.sent < 100_000  # what the connection buffers, and not a million
    opened.abort()


def test_a_stream_without_end_is_ended_at_the_declared_size(
    network: Network, attacker: str
) -> None:
    opened = joined_round(network, LARGE)
    stream = Counted(opened.parts(bytes(4 * MIB))[:1], Part(chunk=bytes(MIB)))
    with refuses_update(network, attacker, "TOO_MUCH", EXHAUSTED):
        opened.submit(attacker, stream)
    assert stream.sent < 64
    opened.abort()


def test_a_stream_that_declares_little_and_never_ends_is_ended(
    network: Network, attacker: str, opened: OpenRound
) -> None:
    stream = Counted(opened.parts(hot(attacker))[:2], Part(chunk=bytes(MIB)))
    with refuses_update(network, attacker, "TOO_MUCH", EXHAUSTED):
        opened.submit(attacker, stream)
    assert stream.sent < 64
    ends_without(opened, attacker)


def test_a_stream_of_headers_without_end_is_ended_at_the_second(
    network: Network, attacker: str, opened: OpenRound
) -> None:
    header = opened.parts(hot(attacker))[0]
    stream = Counted([header], header)
    with refuses_update(network, attacker, "MALFORMED"):
        opened.submit(attacker, stream)
    assert stream.sent < 100_000
    ends_without(opened, attacker)


def test_a_large_update_in_chunks_of_the_smallest_size_is_taken(
    network: Network, attacker: str
) -> None:
    """The bound on chunks keeps out nobody who keeps to the contract."""
    opened = joined_round(network, LARGE)
    update = bytes(4 * MIB)
    header, *_, last = opened.parts(update)
    chunks = [Part(chunk=bytes(64 << 10)) for _ in range(64)]
    opened.submit(attacker, [header, *chunks, last])
    for owner in others_than(attacker):
        opened.push(owner, update)
    ended = opened.ends()
    assert (ended.statement.contributors, ended.payload) == (5, update)


@pytest.mark.parametrize("size", [MIB + 1, MIB + (1 << 17)])
def test_a_chunk_larger_than_the_contract_allows_is_refused(
    network: Network, attacker: str, size: int
) -> None:
    opened = joined_round(network, LARGE)
    header = opened.parts(bytes(4 * MIB))[0]
    with refuses_update(network, attacker, "TOO_MUCH", EXHAUSTED):
        opened.submit(attacker, [header, Part(chunk=bytes(size))])
    opened.abort()
