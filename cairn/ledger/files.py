"""How a ledger lies on a disk: JSON lines, or a node's SQLite database. Only reads, but for `line_of`.

    ledger.jsonl          what a coordinator copied: {"number", "kind", "body", "head"} a line
    aggregator.sqlite     in an aggregator's state directory, with a second chain: what was refused
    owner.sqlite          in an owner's state directory

What is returned was read and not checked, and put in lines for people by `lines_for_people`: see `cairn.ledger.chain.check_chain`.
"""

import json
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cairn.errors import InvalidMessage, UsageError
from cairn.ledger.chain import MAX_ENTRY_BYTES, Entry
from cairn.ledger.database import rows_of
from cairn.runtime.foreign_files import Incomplete, lines_of
from cairn.storage.directory import AGGREGATOR_DATABASE, OWNER_DATABASE

LEDGER_FILE = "ledger.jsonl"
HEAD_FILE = "ledger_head.json"
# What is read of a ledger: far more than a federation writes in years.
MAX_ENTRIES = 1_000_000
MAX_LEDGER_BYTES = 1 << 28
_SIGNED_MESSAGE = re.compile(r"[A-Za-z0-9+/]{128,}={0,2}")  # longer than any digest in hex
_LINE_BYTES = 2 * MAX_ENTRY_BYTES  # JSON within JSON escapes every quotation mark


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
        if type(entry.number) is int and line_of(entry) == line:  # `true` is equal to 1
            return entry
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    complaint = Incomplete if not line.endswith(b"\n") else InvalidMessage
    raise complaint(f"entry {number} cannot be read: line {number} is cut off or was changed")


def find_ledger(path: Path) -> Path:
    """The file of the ledger that `path` is or has. Raises UsageError where there is none."""
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or directory")
    names = (LEDGER_FILE, AGGREGATOR_DATABASE, OWNER_DATABASE)
    if path.is_dir():
        for name in names:
            if (path / name).exists():
                return path / name
    elif path.suffix in {".jsonl", ".sqlite"}:
        return path
    raise UsageError(f"{path} is no ledger and has none: expected {', '.join(names)}")


def read_ledger(path: Path) -> Iterator[Entry]:
    """The entries of the file that `find_ledger` found, in order.

    Raises InvalidMessage, which says what is wrong, at the first that cannot be read.
    """
    yield from _bounded(_lines(path) if path.suffix == ".jsonl" else rows_of(path, "ledger"))


def find_refusals(path: Path) -> Path:
    """The aggregator's database that `path` is or has. Raises UsageError where there is none."""
    file = path / AGGREGATOR_DATABASE if path.is_dir() else path
    if file.name != AGGREGATOR_DATABASE or not file.exists():
        raise UsageError(
            f"{path} has no refusals of an aggregator: expected its state directory, which has them in"
            f" {AGGREGATOR_DATABASE}"
        )
    return file


def read_refusals(path: Path) -> Iterator[Entry]:
    """The entries of the second chain of an aggregator's database, in order; raises as `read_ledger`."""
    yield from _bounded(rows_of(path, "refusals"))


def _lines(path: Path) -> Iterator[Entry]:
    for number, line in enumerate(lines_of(path, _LINE_BYTES, 2 * MAX_LEDGER_BYTES), 1):
        yield entry_of(line, number)


def _bounded(entries: Iterable[Entry]) -> Iterator[Entry]:
    nbytes = 0
    for place, entry in enumerate(entries, 1):
        nbytes += len(entry.body)
        if place > MAX_ENTRIES or nbytes > MAX_LEDGER_BYTES:
            raise InvalidMessage(
                f"it has more than {MAX_ENTRIES} entries or {MAX_LEDGER_BYTES} bytes, and no more are read"
            )
        yield entry


def lines_for_people(path: Path, *, full: bool, refusals: bool) -> Iterator[str]:
    """A line for each entry of the ledger, or with `refusals` of the refusals, that `path` is or has.

    Leaves signed messages in base64 out unless `full`. Raises UsageError where nothing can be read.
    """
    file = find_refusals(path) if refusals else find_ledger(path)
    try:
        for entry in read_refusals(file) if refusals else read_ledger(file):
            yield json.dumps(_values(entry, full=full))
    except (InvalidMessage, RecursionError) as error:
        raise UsageError(f"{file}: {error}") from None


def _values(entry: Entry, *, full: bool) -> dict[str, Any]:
    facts = entry.facts
    ours = {"number": entry.number, "kind": entry.kind, "at": _time(facts.pop("unix_ms", None))}
    if not full:
        facts = {key: value for key, value in facts.items() if not _is_signed_message(value)}
    return {**ours, **facts, **ours}  # ours come first, and no fact replaces them


def _is_signed_message(value: object) -> bool:
    return isinstance(value, str) and _SIGNED_MESSAGE.fullmatch(value) is not None


def _time(unix_ms: object) -> str | None:
    if not isinstance(unix_ms, int):
        return None
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return None
