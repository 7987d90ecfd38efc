"""Reads a ledger out of a SQLite database that anybody may have written.

    a snapshot     What is opened is a private copy of the database and its write-ahead log, of a bounded
                   size. Its files are unlinked as soon as they are open, so nothing is left of them.
    a plain table  No view, virtual table or generated column is read, and no function is called.
    bounds         On the memory of SQLite, the steps of its machine, and the size of a value.

Nothing is written beside the database itself.
"""

import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from urllib.parse import quote

from cairn.errors import InvalidMessage
from cairn.ledger.chain import MAX_ENTRY_BYTES, Entry
from cairn.runtime.foreign_files import opened, pieces_of
from cairn.runtime.quoting import quoted

MAX_DATABASE_BYTES = 1 << 30
_MEMORY_BYTES = 1 << 26
_STEPS, _STEPS_AT_A_TIME = 100_000_000, 1_000_000  # a million entries take a tenth
_COLUMNS = {"number": int, "kind": str, "body": bytes, "head": bytes}
_LOG_HEADER_BYTES = 32  # of a write-ahead log; another one after each time it is begun anew
_COPIES = 5
_ROW_BYTES = 1 << 12  # what a row has beside its body
_HIDDEN = 6  # in what PRAGMA table_xinfo says: of a virtual table, or generated


def rows_of(path: Path, table: Literal["ledger", "refusals"]) -> Iterator[Entry]:
    """The entries of a table, in order.

    Raises InvalidMessage, which says what is wrong, at the first that cannot be read.
    """
    try:
        with _snapshot(path, MAX_DATABASE_BYTES, _bound) as db:
            _check_plain(db, table)
            select = f"SELECT number, kind, body, head FROM {table} ORDER BY number"  # noqa: S608 - the table's name is ours
            for place, row in enumerate(db.execute(select), 1):
                if tuple(map(type, row)) != tuple(_COLUMNS.values()):
                    raise InvalidMessage(
                        f"entry {place} cannot be read: its columns have other types"
                    )
                yield Entry(*row)
    except (OSError, sqlite3.Error, MemoryError, UnicodeError) as error:
        what = "a ledger" if table == "ledger" else table
        raise InvalidMessage(f"it cannot be read as {what}: {_why(error)}") from None


def last_entry(path: Path) -> Entry | None:
    """The last entry of a node's own database; None where it has none, or is not there.

    Raises sqlite3.Error, OSError or InvalidMessage where it cannot be read.
    """
    if not path.exists():
        return None
    select = "SELECT number, kind, body, head FROM ledger ORDER BY number DESC LIMIT 1"
    tables = "SELECT 1 FROM sqlite_master WHERE name = 'ledger'"
    try:
        with _as_it_is(path) as db:
            row = db.execute(select).fetchone() if db.execute(tables).fetchone() else None
    except UnicodeError as error:
        raise InvalidMessage(_why(error)) from None
    if row is not None and tuple(map(type, row)) != tuple(_COLUMNS.values()):
        raise InvalidMessage("its last entry cannot be read: its columns have other types")
    return Entry(*row) if row else None


@contextmanager
def _as_it_is(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a node's own database without writing a byte beside it."""
    if _log_of(path).exists():
        with _snapshot(path, sys.maxsize) as db:
            yield db
    else:
        with closing(_connected(path, immutable=True)) as db:
            yield db


@contextmanager
def _snapshot(
    path: Path, at_most: int, bound: Callable[[sqlite3.Connection], None] = lambda _: None
) -> Iterator[sqlite3.Connection]:
    """A private copy of the database. Its files have no names any more, so nothing can be left of them.

    SQLite writes an index beside a write-ahead log even in order to read it, so a log, of a node that runs or
    that was killed, is copied as well. The log of the copy holds whatever was moved into the database
    meanwhile, unless it was begun anew, which its first bytes show.
    """
    with TemporaryDirectory(prefix="cairn-") as directory:
        copy = Path(directory) / "database"
        for _ in range(_COPIES):
            begun = _beginning_of(_log_of(path))
            _copy(path, copy, at_most)
            if begun is None:
                break
            _copy(_log_of(path), _log_of(copy), at_most)
            if _beginning_of(_log_of(copy)) == begun:
                break
        else:
            raise InvalidMessage("it is being written while it is read: try again")
        with closing(_connected(copy, immutable=begun is None)) as db:
            bound(db)
            db.execute("SELECT 1 FROM sqlite_master").fetchone()  # opens every file
            for file in Path(directory).iterdir():
                file.unlink()
            yield db


def _connected(path: Path, *, immutable: bool) -> sqlite3.Connection:
    how = "immutable=1" if immutable else "mode=ro"
    return sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?{how}", uri=True, isolation_level=None
    )


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _beginning_of(log: Path) -> bytes | None:
    """The first bytes of a write-ahead log; None where there is none."""
    if not log.exists():
        return None
    with opened(log, sys.maxsize) as file:
        return file.read(_LOG_HEADER_BYTES)


def _copy(path: Path, into: Path, at_most: int) -> None:
    with into.open("wb") as file:
        for piece in pieces_of(path, at_most):
            file.write(piece)


def _bound(db: sqlite3.Connection) -> None:
    """Let SQLite use so much memory, take so many steps and read so large values, and no more."""
    for pragma in (
        f"hard_heap_limit = {_MEMORY_BYTES}",
        "temp_store = MEMORY",
        "mmap_size = 0",
        "cell_size_check = ON",
        "trusted_schema = OFF",
    ):
        db.execute(f"PRAGMA {pragma}")
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ENTRY_BYTES + _ROW_BYTES)
    calls = count(1)
    db.set_progress_handler(lambda: next(calls) > _STEPS // _STEPS_AT_A_TIME, _STEPS_AT_A_TIME)


def _check_plain(db: sqlite3.Connection, table: str) -> None:
    """Forbid to read anything but this table. Raises sqlite3.Error where it is not one that a node makes."""
    found = {row[1]: row for row in db.execute(f"PRAGMA table_xinfo({table})")}
    if not found:
        raise sqlite3.DatabaseError(f"no such table: {table}")
    if list(found) != list(_COLUMNS):
        raise sqlite3.DatabaseError(f"no such columns as {', '.join(_COLUMNS)}, and no others")
    is_key = found["number"][2].upper() == "INTEGER" and found["number"][5] == 1
    if not is_key or any(row[_HIDDEN] for row in found.values()):
        raise sqlite3.DatabaseError(f"its {table} is not the table that a node makes")

    def allows(action: int, name: str | None, _column: object, _db: object, by: str | None) -> int:
        reads = action == sqlite3.SQLITE_READ and name == table
        return (
            sqlite3.SQLITE_OK
            if by is None and (reads or action == sqlite3.SQLITE_SELECT)
            else sqlite3.SQLITE_DENY
        )

    db.set_authorizer(allows)


def _why(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it takes more memory than a ledger does"
    if isinstance(error, UnicodeError):  # also where SQLite says so of a name in the schema
        return "it holds text that is not UTF-8"
    if isinstance(error, sqlite3.Error) and str(error) == "interrupted":
        return "it takes more steps than a ledger does"
    return quoted(str(error))  # it may hold the name of a table
