"""A node's state directory: a SQLite database that one process at a time may open.

WAL mode with synchronous=FULL: what was committed is on the disk.
"""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cairn.errors import UsageError
from cairn.storage.directory import state_directory
from cairn.storage.fsync import end_if_lost


class StateDirectory:
    """The directory, its lock and its database."""

    def __init__(self, path: Path, database: str) -> None:
        """Open or create it. Raises UsageError where it is in use or cannot be used."""
        self.path = path
        self.lock = threading.RLock()  # one connection for all threads
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            state_directory(path).check_links()
            flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW
            self._process_lock = os.open(path / "lock", flags, 0o600)
            fcntl.flock(self._process_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.db = sqlite3.connect(
                path / database, isolation_level=None, check_same_thread=False
            )
            _check_own(self.db)
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")
        except BlockingIOError:
            raise UsageError(
                f"{path} is in use by another node: stop it, or give this one a state directory of"
                " its own"
            ) from None
        except (OSError, sqlite3.Error) as error:
            raise state_directory(path).unusable(error) from None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything written inside is kept together or not at all.

        Raises what fails inside, and sqlite3.Error where the disk is full; where it lost something the
        process ends here, before anybody can undo what a commit may have kept.
        """
        with self.lock:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.db.execute("COMMIT")
            except BaseException as error:
                end_if_lost(error)
                if self.db.in_transaction:  # a full disk has rolled back by itself
                    self.db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        self.db.close()
        os.close(self._process_lock)


def _check_own(db: sqlite3.Connection) -> None:
    """Raise sqlite3.Error where something in it would act on what is written: a trigger can leave an entry out."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE type IN ('trigger', 'view')").fetchone():
        raise sqlite3.DatabaseError("it has triggers or views, which no node makes")


def is_in_use(path: Path) -> bool:
    """Whether a process that runs now has opened the directory. Raises OSError where that cannot be told."""
    try:
        # O_NONBLOCK: a pipe would keep it.
        lock = os.open(path / "lock", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
