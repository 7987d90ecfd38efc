"""The run's own copy of the aggregator's ledger, which can only grow.

    ledger.jsonl        the entries, a line each (cairn/ledger/files.py)
    ledger_head.json    the aggregator's signed word on how far they go, as a DSSE envelope

The head is replaced after the entries were added. Only complete lines count after a crash.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from cairn.errors import CairnError, InvalidMessage, UsageError
from cairn.ledger.chain import GENESIS, Entry, check_chain
from cairn.ledger.files import (
    HEAD_FILE,
    LEDGER_FILE,
    MAX_LEDGER_BYTES,
    entry_of,
    line_of,
    read_ledger,
)
from cairn.protocol.messages import parse
from cairn.protocol.statements import from_envelope, head_envelope
from cairn.runtime.failpoints import failpoint
from cairn.runtime.foreign_files import Incomplete, content_of
from cairn.storage import fsync
from cairn.storage.files import write_atomically
from cairn.v1 import round_pb2 as pb
from coordinator.aggregator_client import Page


class LedgerMirror:
    """What the run's folder holds of the ledger of the aggregator of `federation`."""

    def __init__(self, folder: Path, federation: str) -> None:
        """Read what there is. Raises UsageError where it was damaged."""
        self._path = folder / LEDGER_FILE
        self._head_path = folder / HEAD_FILE
        self._federation = federation
        self._signed_head = self._read_head()
        self._last, self._complete_bytes = self._read()

    @property
    def number(self) -> int:
        """How many entries the copy has."""
        return self._last.number if self._last else 0

    def bring_up_to_date(self, ask: Callable[[int], Page]) -> None:
        """Fetch what is missing; `ask` returns the entries from a number on.

        Raises CairnError, and keeps what it has, where the aggregator's ledger does not go on from it.
        """
        while True:
            page = ask(max(self.number, 1))
            if page.head.federation != self._federation:
                raise InvalidMessage(
                    f"the aggregator signed its ledger for the federation {page.head.federation[:80]!r}"
                )
            self._append(self._new(page))
            if page.head.number == self.number:
                break
        if page.head.head != (self._last.head if self._last else GENESIS):
            raise _replaced(self.number)
        if page.signed_head != self._signed_head:
            failpoint("coordinator.ledger.before_head")
            text = json.dumps(head_envelope(page.signed_head), indent=2) + "\n"
            write_atomically(self._head_path, [text.encode()])
            self._signed_head = page.signed_head

    def _new(self, page: Page) -> list[Entry]:
        """The entries that the copy lacks; the page begins with the copy's last, so that it is compared."""
        seen = self._seen
        least = max(self.number, seen.number)
        if page.head.number < least:
            raise _replaced(least)
        entries = list(page.entries)
        if self._last is not None:
            if not entries or entries[0] != self._last:
                raise _replaced(self.number)
            entries = entries[1:]
        new = list(check_chain(entries, self._last))
        for entry in new:
            _ = entry.facts  # raises where nobody could read them
        if any(entry.number == seen.number and entry.head != seen.head for entry in new):
            raise _replaced(seen.number)
        if not new and page.head.number > self.number:
            raise InvalidMessage(f"the aggregator keeps back entry {self.number + 1} of its ledger")
        return new

    def cohort_of(self, manifest_digest: bytes) -> list[str]:
        """Whom a round was opened with. Raises InvalidMessage where the copy has no such opening."""
        for entry in read_ledger(self._path):
            if entry.kind == "open" and entry.facts.get("manifest_digest") == manifest_digest.hex():
                cohort: list[str] = entry.facts["cohort"]
                return cohort
        raise InvalidMessage("the aggregator's ledger does not open the round that it released")

    @property
    def _seen(self) -> pb.LedgerHead:
        """What ledger_head.json says."""
        if self._signed_head is None:
            return pb.LedgerHead(head=GENESIS)
        return parse(pb.LedgerHead, self._signed_head.body)

    def _append(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        lines = [line_of(entry) for entry in entries]
        with self._path.open("ab") as file:
            file.truncate(self._complete_bytes)
            file.writelines(lines)
            file.flush()
            fsync.sync(file.fileno())
            self._complete_bytes = file.tell()
        self._last = entries[-1]

    def _read(self) -> tuple[Entry | None, int]:
        """The last complete entry, and the bytes of all complete lines."""
        try:
            content = content_of(self._path, 2 * MAX_LEDGER_BYTES)  # as `read_ledger` does
            size = content.rfind(b"\n") + 1
            return self._last_of(content[:size].splitlines(keepends=True)), size
        except Incomplete:
            return None, 0
        except InvalidMessage as error:
            raise UsageError(
                f"{self._path}: {error}. Move the file away: the ledger is then fetched again"
            ) from None

    def _last_of(self, lines: list[bytes]) -> Entry | None:
        entry = None
        for entry in check_chain(entry_of(line, n) for n, line in enumerate(lines, 1)):
            if entry.number == self._seen.number and entry.head != self._seen.head:
                raise InvalidMessage(f"entry {entry.number} is not the one of {HEAD_FILE}")
        return entry

    def _read_head(self) -> pb.Signed | None:
        try:
            signed = from_envelope(content_of(self._head_path).decode())
            parse(pb.LedgerHead, signed.body)
        except Incomplete:
            return None
        except (ValueError, InvalidMessage) as error:
            raise UsageError(
                f"{self._head_path}: {error}. Move the file away: it is then written again"
            ) from None
        return signed


def _replaced(number: int) -> CairnError:
    return CairnError(
        f"the aggregator's ledger was replaced or rolled back: entry {number} is not the one that this"
        " run's ledger.jsonl and ledger_head.json hold. Ask whoever runs the aggregator; the job can go"
        " on under a new name, in a folder of its own, with this run's model as its first"
    )
