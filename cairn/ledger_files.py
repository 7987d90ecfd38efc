"""How a ledger lies on a disk: JSON lines, or a node's SQLite database. Only reads, but for `line_of`.

    ledger.jsonl          what a coordinator copied: {"number", "kind", "body", "head"} a line
    aggregator.sqlite     in an aggregator's state directory, with a second chain: what was refused
    owner.sqlite          in an owner's state directory

What is returned was read and not checked: see `cairn.ledger.check_chain`.
"""

import base64
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from urllib.parse import quote

from cairn.errors import InvalidMessage, UsageError
from cairn.ledger import Entry
from cairn.messages import parse
from cairn.v1 import round_pb2 as pb

LEDGER_FILE = "ledger.jsonl"
HEAD_FILE = "ledger_head.json"
AGGREGATOR_DATABASE = "aggregator.sqlite"
OWNER_DATABASE = "owner.sqlite"
_COLUMNS = (int, str, bytes, bytes)
_LOG_HEADER_BYTES = 32  # of a write-ahead log; another one after each time it is begun anew
_COPIES = 5


def line_of(entry: Entry) -> bytes:
    """The entry as a line of a ledger.jsonl. Raises InvalidMessage where its body is no text."""
    try:
        body = entry.body.decode()
    except UnicodeDecodeError:
        raise InvalidMessage(f"entry {entry.number} is not UTF-8") from None
    values = {"number": entry.number, "kind": entry.kind, "body": body, "head": entry.head.hex()}
    return json.dumps(values).encode() + b"\n"


def entry_of(line: bytes, number: int) -> Entry:
    """Read back line `number`. Raises InvalidMessage where `line_of` did not write it."""
    try:
        values = json.loads(line)
        head = bytes.fromhex(values["head"])
        entry = Entry(values["number"], values["kind"], values["body"].encode(), head)
        entry.kind.encode()  # JSON can spell half a surrogate pair, which is no text
        if line_of(entry) == line:
            return entry
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise InvalidMessage(f"entry {number} cannot be read: line {number} is cut off or was changed")


def head_envelope(signed: pb.Signed) -> dict[str, Any]:
    """A signed LedgerHead as a DSSE JSON envelope, and beside it in words."""
    head = parse(pb.LedgerHead, signed.body)
    return {
        "payloadType": signed.type,
        "payload": base64.b64encode(signed.body).decode(),
        "signatures": [{"sig": base64.b64encode(signed.signature).decode()}],
        "ledger": {
            "federation": head.federation,
            "number": head.number,
            "head": head.head.hex(),
        },
    }


def find_ledger(path: Path) -> Path:
    """The file of the ledger that `path` is or has. Raises UsageError where there is none."""
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or directory")
    names = (LEDGER_FILE, AGGREGATOR_DATABASE, OWNER_DATABASE)
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
    elif path.suffix in {".jsonl", ".sqlite"}:
        return path
    raise UsageError(f"{path} is no ledger and has none: expected {', '.join(names)}")


def read_ledger(path: Path) -> Iterator[Entry]:
    """The entries of the file that `find_ledger` found, in order.

    Raises InvalidMessage, which says what is wrong, at the first that cannot be read.
    """
    try:
        if path.suffix == ".jsonl":
            with path.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    yield entry_of(line, number)
        else:
            yield from _rows(path, "ledger")
    except FileNotFoundError:
        raise InvalidMessage("it is missing") from None
    except (OSError, sqlite3.Error) as error:
        raise InvalidMessage(f"it cannot be read as a ledger: {error}") from None


def last_entry(path: Path) -> Entry | None:
    """The last entry of a node's database; None where it has none, or is not there.

    Raises sqlite3.Error, OSError or InvalidMessage where it cannot be read.
    """
    if not path.exists():
        return None
    select = "SELECT number, kind, body, head FROM ledger ORDER BY number DESC LIMIT 1"
    tables = "SELECT 1 FROM sqlite_master WHERE name = 'ledger'"
    with _for_reading(path) as uri, closing(sqlite3.connect(uri, uri=True)) as db:
        row = db.execute(select).fetchone() if db.execute(tables).fetchone() else None
    if row is not None and tuple(map(type, row)) != _COLUMNS:
        raise InvalidMessage("its last entry cannot be read: its columns have other types")
    return Entry(*row) if row else None


def find_refusals(path: Path) -> Path:
    """The aggregator's database that `path` is or has. Raises UsageError where there is none."""
    file = path / AGGREGATOR_DATABASE if path.is_dir() else path
    if file.name != AGGREGATOR_DATABASE or not file.is_file():
        raise UsageError(
            f"{path} has no refusals of an aggregator: expected its state directory, which has them in"
            f" {AGGREGATOR_DATABASE}"
        )
    return file


def read_refusals(path: Path) -> Iterator[Entry]:
    """The entries of the second chain of an aggregator's database, in order; raises as `read_ledger`."""
    try:
        yield from _rows(path, "refusals")
    except (OSError, sqlite3.Error) as error:
        raise InvalidMessage(f"it cannot be read as refusals: {error}") from None


def _rows(path: Path, table: Literal["ledger", "refusals"]) -> Iterator[Entry]:
    with _for_reading(path) as uri, closing(sqlite3.connect(uri, uri=True)) as db:
        select = f"SELECT number, kind, body, head FROM {table} ORDER BY number"  # noqa: S608 - the table's name is ours
        for place, row in enumerate(db.execute(select), 1):
            if tuple(map(type, row)) != _COLUMNS:
                raise InvalidMessage(f"entry {place} cannot be read: its columns have other types")
            yield Entry(*row)


@contextmanager
def _for_reading(path: Path) -> Iterator[str]:
    """The URI that opens a database, or a copy of it, without writing a byte beside it.

    SQLite writes an index beside a write-ahead log even in order to read it. So where there is a log, of
    a node that runs or that was killed, both files are copied. The log of the copy holds whatever was
    moved into the database meanwhile, unless it was begun anew, which its first bytes show.
    """
    log = path.with_name(f"{path.name}-wal")
    if not log.exists():
        yield f"file:{quote(str(path.absolute()))}?immutable=1"
        return
    with TemporaryDirectory() as directory:
        for _ in range(_COPIES):
            begun = _first_bytes(log)
            for file in (path, log):
                shutil.copyfile(file, Path(directory) / file.name)
            if _first_bytes(Path(directory) / log.name) == begun:
                break
        else:
            raise InvalidMessage("it is being written while it is read: try again")
        yield f"file:{quote(directory)}/{quote(path.name)}?mode=ro"


def _first_bytes(log: Path) -> bytes:
    with log.open("rb") as file:
        return file.read(_LOG_HEADER_BYTES)
