"""Deletes the directory that a task could write to, however deep it went and whatever rights it took away.

No link is followed, and no path is longer than two names: what lies deeper is moved up first.
"""

import os
import stat
from contextlib import suppress
from itertools import count
from pathlib import Path

_A_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def clear(place: Path) -> None:
    """Delete it, as far as it lets itself be. What a process had mounted there is gone with the process."""
    with suppress(OSError):
        top = os.open(place, _A_DIRECTORY)
        try:
            _empty(top)
        finally:
            os.close(top)
        place.rmdir()


def _empty(top: int) -> None:
    names = count()
    pending = [entry.name for entry in os.scandir(top)]
    while pending:
        name = pending.pop()
        if not _is_directory(name, top):
            os.unlink(name, dir_fd=top)
            continue
        inner = _opened(name, top)
        try:
            for child in [entry.name for entry in os.scandir(inner)]:
                if _is_directory(child, inner):
                    _open_up(child, inner)  # a directory is moved only by whoever may write to it
                    moved = f".{next(names)}-{os.getpid()}"
                    os.rename(child, moved, src_dir_fd=inner, dst_dir_fd=top)
                    pending.append(moved)
                else:
                    os.unlink(child, dir_fd=inner)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=top)


def _is_directory(name: str, within: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=within, follow_symlinks=False).st_mode)


def _opened(name: str, within: int) -> int:
    _open_up(name, within)
    return os.open(name, _A_DIRECTORY, dir_fd=within)


def _open_up(name: str, within: int) -> None:
    """Take every right to it, by a descriptor, so that no link comes in between."""
    descriptor = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=within)
    try:
        Path(f"/proc/self/fd/{descriptor}").chmod(stat.S_IRWXU)
    finally:
        os.close(descriptor)
