"""A ledger: entries that can only be appended, each chained to the one before it by SHA-256.

    head(n) = SHA-256(head(n - 1), kind, a zero byte, body);  head(0) is 32 zero bytes

Whoever knows one head knows whether anything up to it was changed, left out or put in.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cairn.errors import InvalidMessage
from cairn.runtime.clock import Clock
from cairn.runtime.foreign_files import json_values

GENESIS = bytes(32)
MAX_ENTRY_BYTES = 1 << 20  # of a body; the longest names every owner of a large federation
MAX_ENTRY_VALUES = 20_000
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; `number` counts from 1 and `head` is the head after it."""

    number: int
    kind: str
    body: bytes
    head: bytes

    @property
    def facts(self) -> dict[str, Any]:
        """What was recorded. Raises InvalidMessage where the body is not a JSON object of a node's."""
        if json_values(self.body) > MAX_ENTRY_VALUES:
            raise InvalidMessage(f"entry {self.number} has more values than a node records")
        try:
            facts = json.loads(self.body)
        except (ValueError, RecursionError):  # nested too deeply
            facts = None
        if not isinstance(facts, dict):
            raise InvalidMessage(f"entry {self.number} is not a JSON object")
        return facts


def next_head(head: bytes, kind: str, body: bytes) -> bytes:
    """The head after an entry that follows `head`."""
    return sha256(head + kind.encode() + b"\0" + body).digest()


def check_chain(entries: Iterable[Entry], after: Entry | None = None) -> Iterator[Entry]:
    """Yield the entries as long as each follows from the one before it.

    `after` is the entry before the first of them; None where they start the ledger. Raises
    InvalidMessage that names the first entry that does not follow.
    """
    number, head = (after.number, after.head) if after else (0, GENESIS)
    for entry in entries:
        number += 1
        if entry.number != number:
            raise InvalidMessage(f"entry {number} is missing: entry {entry.number} is in its place")
        head = next_head(head, entry.kind, entry.body)
        if entry.head != head:
            raise InvalidMessage(
                f"entry {number} does not follow from the one before it: either was changed"
            )
        yield entry


class Ledger:
    """A ledger in a table of a SQLite database; the caller opens the transactions and holds the lock."""

    def __init__(self, db: sqlite3.Connection, table: str, clock: Clock) -> None:
        self._db = db
        self._table = table
        self._clock = clock
        db.execute(
            f"CREATE TABLE IF NOT EXISTS {table} (number INTEGER PRIMARY KEY, kind TEXT NOT NULL,"
            " body BLOB NOT NULL, head BLOB NOT NULL) STRICT"
        )

    def append(self, kind: str, facts: Mapping[str, object]) -> Entry:
        """Add an entry of these facts and the present time, as canonical JSON."""
        number, head = self.head()
        timed = {**facts, "unix_ms": self._clock.unix_ms()}
        body = json.dumps(timed, sort_keys=True, separators=(",", ":")).encode()
        entry = Entry(number + 1, kind, body, next_head(head, kind, body))
        insert = f"INSERT INTO {self._table} VALUES (?, ?, ?, ?)"  # noqa: S608 - the table's name is ours
        self._db.execute(insert, (entry.number, entry.kind, entry.body, entry.head))
        return entry

    def head(self) -> tuple[int, bytes]:
        """How many entries there are, and the head of the last."""
        select = f"SELECT number, head FROM {self._table} ORDER BY number DESC LIMIT 1"  # noqa: S608 - the table's name is ours
        row = self._db.execute(select).fetchone()
        return (row[0], bytes(row[1])) if row else (0, GENESIS)

    def head_at(self, number: int) -> bytes | None:
        """The head after so many entries; None where there are fewer."""
        if number == 0:
            return GENESIS
        found = self.entries(number, 1)
        return found[0].head if found else None

    def entries(self, first: int, limit: int) -> list[Entry]:
        """At most `limit` entries from number `first` on."""
        select = (
            f"SELECT number, kind, body, head FROM {self._table} WHERE number >= ?"  # noqa: S608 - the table's name is ours
            " ORDER BY number LIMIT ?"
        )
        return [Entry(*row) for row in self._db.execute(select, (first, limit))]

    def all(self) -> Iterator[Entry]:
        """Every entry, a page at a time. Raises InvalidMessage at the first that was tampered with."""
        return check_chain(self._pages())

    def _pages(self) -> Iterator[Entry]:
        first = 1
        while page := self.entries(first, _PAGE):
            yield from page
            first = page[-1].number + 1
