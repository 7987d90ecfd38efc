"""Carries chunks of tensors past protobuf: what is on the wire is the same, without the copies.

The four streams of tensors have their bytes in a field `chunk` of number 2. Its message is a tag, a
length and then the bytes themselves (https://protobuf.dev/programming-guides/encoding/), so it can be
written by one copy and read by none. In Python a chunk is a `memoryview`, every other part its message.
"""

from collections.abc import Callable, Iterator
from typing import Any

from cairn.model.schema import CHUNK_BYTES

_UPLOADS = {
    "/cairn.v1.IntakeService/SubmitUpdate",
    "/cairn.v1.ReleaseService/SubmitModel",
}
_DOWNLOADS = {
    "/cairn.v1.InvitationService/FetchModel",
    "/cairn.v1.ReleaseService/CollectRelease",
}

_TAG = b"\x12"  # field 2, length-delimited
_LONGEST_LENGTH = 10  # bytes of a varint

Writer = Callable[[Any], bytes]
Reader = Callable[[bytes], Any]


def chunks_of(payload: memoryview, begin: int = 0) -> Iterator[memoryview]:
    """The bytes from `begin` on, as they are to be sent: not copied yet."""
    for start in range(begin, len(payload), CHUNK_BYTES):
        yield payload[start : start + CHUNK_BYTES]


def request_writer(method: str, generated: Writer) -> Writer:
    return _writer(generated) if method in _UPLOADS else generated


def request_reader(method: str, generated: Reader) -> Reader:
    return _reader(generated) if method in _UPLOADS else generated


def response_writer(method: str, generated: Writer) -> Writer:
    return _writer(generated) if method in _DOWNLOADS else generated


def response_reader(method: str, generated: Reader) -> Reader:
    return _reader(generated) if method in _DOWNLOADS else generated


def _writer(generated: Writer) -> Writer:
    def write(part: Any) -> bytes:
        if isinstance(part, memoryview):
            return b"".join((_TAG, _varint(part.nbytes), part))
        return generated(part)

    return write


def _reader(generated: Reader) -> Reader:
    def read(raw: bytes) -> Any:
        begin = _begin_of_chunk(raw)
        if begin:
            return memoryview(raw)[begin:]
        part = generated(raw)  # also a chunk that is spelt in another way
        return memoryview(part.chunk) if part.WhichOneof("part") == "chunk" else part

    return read


def _begin_of_chunk(raw: bytes) -> int:
    """Where the bytes of a message that is one chunk and nothing else begin; 0 for any other."""
    if raw[:1] != _TAG:
        return 0
    length, position = 0, 1
    for position, byte in enumerate(raw[1 : 1 + _LONGEST_LENGTH], start=1):
        length |= (byte & 0x7F) << 7 * (position - 1)
        if byte < 0x80:  # noqa: PLR2004 - the last byte of a varint has no top bit
            return position + 1 if position + 1 + length == len(raw) else 0
    return 0


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
