"""Reads files that anybody may have written: only regular ones, and never more than a stated size.

A named pipe or a device could keep the reader for ever, and a file may have no end. Each is looked at once
it is open, so that nobody can put another in its place in between.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cairn.errors import InvalidMessage

MAX_JSON_BYTES = 1 << 20  # a statement of 1024 owners has less than half of it
_PIECE_BYTES = 1 << 20
# To read a hole takes time and costs nothing to make: a larger file has a hundredth of its bytes on the disk.
_HOLLOW_BYTES, _LEAST_SHARE, _BLOCK_BYTES = 1 << 34, 100, 512
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class Incomplete(InvalidMessage):
    """A file ends too early, or is not there: a writer that was killed may have left it so."""


@contextmanager
def opened(path: Path, at_most: int) -> Iterator[BinaryIO]:
    """Open a regular file of so many bytes at the most, to be read.

    Raises InvalidMessage, which does not name the file, where there is none or it cannot be read; also for an
    OSError while it is read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            _check(os.fstat(descriptor), at_most)
            yield file
    except FileNotFoundError:
        raise Incomplete("it is missing") from None
    except OSError as error:
        raise InvalidMessage(f"it cannot be read: {error.strerror or error}") from None


def content_of(path: Path, at_most: int = MAX_JSON_BYTES) -> bytes:
    """The whole content. Raises InvalidMessage as `opened` does."""
    with opened(path, at_most) as file:
        content = file.read(at_most + 1) or b""
        if len(content) > at_most:
            raise _too_long(len(content), at_most)
        return content


def lines_of(path: Path, line_bytes: int, at_most: int) -> Iterator[bytes]:
    """The lines, each with its end. Raises InvalidMessage as `opened` does, and at a line that is too long."""
    with opened(path, at_most) as file:
        number, total = 0, 0
        while line := file.readline(line_bytes + 1):
            number += 1
            total += len(line)
            if len(line) > line_bytes:
                raise InvalidMessage(f"line {number} has more than {line_bytes} bytes")
            if total > at_most:  # it grew meanwhile
                raise _too_long(total, at_most)
            yield line


def pieces_of(path: Path, at_most: int) -> Iterator[bytes]:
    """The content, a piece at a time, as far as it went when the file was opened."""
    with opened(path, at_most) as file:
        found = os.fstat(file.fileno())
        left = found.st_size
        if left > _HOLLOW_BYTES and left > _LEAST_SHARE * _BLOCK_BYTES * found.st_blocks:
            raise InvalidMessage(f"it claims {left} bytes, of which the disk has hardly any")
        while left > 0 and (piece := file.read(min(left, _PIECE_BYTES))):
            left -= len(piece)
            yield piece
        if left:
            raise InvalidMessage("it became shorter while it was read")


def json_values(text: bytes) -> int:
    """How many values a JSON text has at the most: each but the first follows one of four bytes."""
    return 1 + sum(map(text.count, (b",", b":", b"[", b"{")))


def _check(found: os.stat_result, at_most: int) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        raise InvalidMessage(f"it is {_KINDS.get(kind, 'something else')}, not a regular file")
    if found.st_size > at_most:
        raise _too_long(found.st_size, at_most)


def _too_long(nbytes: int, at_most: int) -> InvalidMessage:
    return InvalidMessage(f"it has {nbytes} bytes; this command reads {at_most} at the most")
