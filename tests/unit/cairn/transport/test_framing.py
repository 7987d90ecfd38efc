"""Chunks that are carried past protobuf: on the wire, and to the reader, they are protobuf's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from cairn.model.schema import CHUNK_BYTES
from cairn.transport import framing
from cairn.v1 import aggregator_pb2, coordinator_pb2


@dataclass(frozen=True)
class Stream:
    """One of the streams of tensors: its message, and how each end writes and reads it."""

    method: str
    message: Any
    write: framing.Writer
    read: framing.Reader

    def chunk(self, payload: bytes) -> bytes:
        """The message of a chunk, as the generated code serialises it."""
        serialised: bytes = self.message(chunk=payload).SerializeToString()
        return serialised


def stream(method: str, message: Any, *, up: bool) -> Stream:
    writer = framing.request_writer if up else framing.response_writer
    reader = framing.request_reader if up else framing.response_reader
    generated: tuple[framing.Writer, framing.Reader] = message.SerializeToString, message.FromString
    return Stream(method, message, writer(method, generated[0]), reader(method, generated[1]))


STREAMS = [
    stream("/cairn.v1.IntakeService/SubmitUpdate", aggregator_pb2.SubmitUpdateRequest, up=True),
    stream(
        "/cairn.v1.ReleaseService/CollectRelease", aggregator_pb2.CollectReleaseResponse, up=False
    ),
    stream("/cairn.v1.InvitationService/FetchModel", coordinator_pb2.FetchModelResponse, up=False),
]
UPDATE = STREAMS[0]
HEADER = aggregator_pb2.SubmitUpdateRequest(header=aggregator_pb2.UpdateHeader(examples=7))
COMMIT = aggregator_pb2.SubmitUpdateRequest(
    commit=aggregator_pb2.UpdateCommit(payload_digest=bytes(range(32)))
)

each_stream = pytest.mark.parametrize("stream", STREAMS, ids=[s.message.__name__ for s in STREAMS])
each_size = pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 1 << 20, CHUNK_BYTES])


def patterned(size: int) -> bytes:
    return (bytes(range(256)) * (size // 256 + 1))[:size]


def varint(value: int, padding: int = 0) -> bytes:
    """A varint of protobuf, with so many bytes at its end that add nothing."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    groups += [0] * padding
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def check_same(stream: Stream, raw: bytes) -> None:
    """What our reader makes of the bytes must be what protobuf makes of them."""
    try:
        expected = stream.message.FromString(raw)
    except DecodeError:
        with pytest.raises(DecodeError):
            stream.read(raw)
        return
    found = stream.read(raw)
    if expected.WhichOneof("part") == "chunk":
        assert isinstance(found, memoryview)
        assert bytes(found) == expected.chunk
    else:
        assert found == expected


@each_stream
@each_size
def test_a_chunk_is_written_as_the_generated_code_serialises_it(stream: Stream, size: int) -> None:
    payload = patterned(size)
    assert stream.write(memoryview(payload)) == stream.chunk(payload)


def test_a_chunk_out_of_the_middle_of_a_model_is_written_alone() -> None:
    whole = memoryview(patterned(1000))
    assert UPDATE.write(whole[100:900]) == UPDATE.chunk(bytes(whole[100:900]))


@pytest.mark.parametrize("message", [HEADER, COMMIT, aggregator_pb2.SubmitUpdateRequest()])
def test_any_other_part_passes_as_its_message(message: Any) -> None:
    raw = UPDATE.write(message)
    assert raw == message.SerializeToString()
    assert UPDATE.read(raw) == message


@each_stream
@each_size
def test_a_chunk_of_the_generated_code_is_read_without_a_copy(stream: Stream, size: int) -> None:
    payload = patterned(size)
    raw = stream.chunk(payload)
    chunk = stream.read(raw)
    assert isinstance(chunk, memoryview)
    assert chunk == payload
    assert chunk.obj is raw


ODD = {
    "the length in two bytes": b"\x12" + varint(3, padding=1) + b"abc",
    "the length in five bytes": b"\x12" + varint(3, padding=4) + b"abc",
    "the length in ten bytes": b"\x12" + varint(3, padding=9) + b"abc",
    "the length in eleven bytes": b"\x12" + varint(3, padding=10) + b"abc",
    "the tag in two bytes": varint(0x12, padding=1) + b"\x03abc",
    "the tag in five bytes": varint(0x12, padding=4) + b"\x03abc",
    "a number before the chunk": b"\x78\x05" + UPDATE.chunk(b"abc"),
    "a number after the chunk": UPDATE.chunk(b"abc") + b"\x78\x05",
    "unknown bytes after the chunk": UPDATE.chunk(b"abc") + b"\x7a\x02hi",
    "a chunk twice": UPDATE.chunk(b"abc") + UPDATE.chunk(b"de"),
    "a chunk and an empty one": UPDATE.chunk(b"abc") + UPDATE.chunk(b""),
    "a chunk and a commit": UPDATE.chunk(b"abc") + COMMIT.SerializeToString(),
    "a commit and a chunk": COMMIT.SerializeToString() + UPDATE.chunk(b"abc"),
    "a header and a chunk": HEADER.SerializeToString() + UPDATE.chunk(b"abc"),
    "a chunk that looks like a chunk": UPDATE.chunk(UPDATE.chunk(b"abc")),
    "a chunk as a number": b"\x10\x05",
    "nothing": b"",
    "a tag alone": b"\x12",
    "a length without an end": b"\x12" + b"\xff" * 10,
    "a length beyond 64 bits": b"\x12" + b"\xff" * 9 + b"\x7f" + b"abc",
    "a length that wraps to three": b"\x12\x83" + b"\x80" * 8 + b"\x02" + b"abc",
    "one byte too few": UPDATE.chunk(b"abc")[:-1],
    "one byte too many": UPDATE.chunk(b"abc") + b"\x00",
}


@pytest.mark.parametrize("raw", ODD.values(), ids=ODD)
@each_stream
def test_an_odd_spelling_is_read_as_protobuf_reads_it(stream: Stream, raw: bytes) -> None:
    check_same(stream, raw)


spelt_fields = st.builds(
    lambda tag, padding, length, content: (
        varint(tag, padding[0]) + varint(length or len(content), padding[1]) + content
    ),
    st.sampled_from([0x0A, 0x12, 0x1A, 0x10, 0x2A, 0x13, 0x14]),
    st.tuples(st.integers(0, 10), st.integers(0, 10)),
    st.one_of(st.none(), st.integers(0, 1 << 64)),
    st.binary(max_size=200),
)


@example(b"\x12\x00")
@given(st.one_of(st.binary(), st.lists(spelt_fields, max_size=3).map(b"".join)))
def test_whatever_arrives_is_read_as_protobuf_reads_it_or_refused_as_it_refuses(raw: bytes) -> None:
    for stream in STREAMS:
        check_same(stream, raw)


@given(st.binary(max_size=300))
def test_what_is_written_is_read_back(payload: bytes) -> None:
    for stream in STREAMS:
        assert stream.read(stream.write(memoryview(payload))) == payload


@pytest.mark.parametrize(
    "choose",
    [
        framing.request_writer,
        framing.request_reader,
        framing.response_writer,
        framing.response_reader,
    ],
)
def test_every_other_message_is_left_to_the_generated_code(
    choose: Callable[[str, Any], Any],
) -> None:
    def generated(_part: object) -> bytes:
        return b""

    ways = {choose(stream.method, generated) for stream in STREAMS} - {generated}
    assert len(ways) == (1 if "request" in choose.__name__ else 2)
    for method in (
        "/cairn.v1.IntakeService/JoinRound",
        "/cairn.v1.ReleaseService/RegisterJob",
        "/cairn.v1.InvitationService/Attend",
        "/cairn.v1.IntakeService/SubmitUpdate/",
        "",
    ):
        assert choose(method, generated) is generated


@pytest.mark.parametrize("begin", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 5])
def test_a_payload_is_cut_into_chunks_from_where_it_is_to_begin(begin: int) -> None:
    payload = memoryview(patterned(2 * CHUNK_BYTES + 5))
    chunks = list(framing.chunks_of(payload, begin))
    assert b"".join(chunks) == payload[begin:]
    assert all(len(chunk) == CHUNK_BYTES for chunk in chunks[:-1])
    assert all(chunk.obj is payload.obj for chunk in chunks)
