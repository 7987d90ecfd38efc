"""What a failing disk means: a full one is waited for, one that loses what it was given ends the process.

After an fsync that failed, Linux may have dropped what it could not write, and the next fsync says that all is
well. So nothing is left on which this process could build: it ends at once, writes and deletes nothing any more,
and starts again from what the disk really holds.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import structlog

from cairn.runtime.process import EXIT_FAILED
from cairn.runtime.quoting import say

log = structlog.get_logger()

_PRIMARY_CODE = 0xFF  # SQLite puts the detail above it
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


def sync(descriptor: int) -> None:
    """Have the disk keep what was written. Raises OSError where it is full; any other failure is the end."""
    with _ending():
        os.fsync(descriptor)


def sync_data(descriptor: int) -> None:
    """The same, of a file that is not complete yet."""
    with _ending():
        os.fdatasync(descriptor)


def end_if_lost(error: BaseException) -> None:
    """End the process where the error, of a database or a file, says that the disk lost something."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0)  # errors of the module itself have none
        if code & _PRIMARY_CODE == sqlite3.SQLITE_IOERR:
            _end(error)
    elif isinstance(error, OSError) and error.errno == errno.EIO:
        _end(error)


@contextmanager
def _ending() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            _end(error)
        raise


def _end(error: BaseException) -> NoReturn:
    log.critical("the disk failed", trouble=str(error))
    say(
        f"error: the disk failed ({error}), so what this node has written may be lost. It ends and builds"
        " nothing on that. Look at the disk, then start it again: it goes on from what is there",
        err=True,
    )
    os._exit(EXIT_FAILED)
