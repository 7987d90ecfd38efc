"""Writes small files so that they are there whole or not at all, and finds what a crash left of them."""

import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from cairn.runtime.buffer import Buffer
from cairn.storage import fsync

_TEMPORARY = re.compile(r"\.cairn-[0-9a-f]{16}\.tmp")


def write_atomically(path: Path, parts: Iterable[Buffer], mode: int = 0o666) -> None:
    """Replace the file's content by the parts, one after the other, durably and all at once.

    The new file has this mode, less what this process's umask takes away.

    Whoever reads the file meanwhile, or after a crash, finds the old content or the new, whole. Raises
    OSError as the file system does; where that is before the end, the old content stays and nothing
    is left behind. A crash can leave a file `.cairn-*.tmp` beside it, which may be deleted.
    """
    temporary = path.parent / f".cairn-{secrets.token_hex(8)}.tmp"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            fsync.sync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def clear_left_overs(directory: Path) -> None:
    """Delete what a crash left of files that were being written here; nobody else may be writing."""
    for path in directory.iterdir():
        if is_left_over(path.name):
            path.unlink()


def is_left_over(name: str) -> bool:
    """Whether a file of this name was being written when a process died."""
    return _TEMPORARY.fullmatch(name) is not None


def sync_directory(path: Path) -> None:
    """Make durable which files a directory has."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync.sync(directory)
    finally:
        os.close(directory)
