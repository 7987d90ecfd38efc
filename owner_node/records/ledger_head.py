"""Keeps the last signed head of the aggregator's ledger that this owner was given.

An aggregator that later shows less, or something else in its place, was set back to an older or another
state and might open the same rounds again.
"""

import sqlite3
import threading

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cairn.errors import InvalidMessage, UsageError
from cairn.protocol.messages import parse
from cairn.protocol.statements import verified_head
from cairn.storage.database import StateDirectory
from cairn.v1 import round_pb2 as pb
from owner_node.records.ledger import NotRecorded

_CREATE = (
    "CREATE TABLE IF NOT EXISTS witness (one INTEGER PRIMARY KEY CHECK (one = 1), signed BLOB NOT NULL)"
    " STRICT"
)


class LedgerHeadTracker:
    """Every public method may be called from any thread."""

    def __init__(self, state: StateDirectory, key: Ed25519PublicKey, federation: str) -> None:
        """Raise UsageError where the head that was kept is not one of this aggregator's."""
        self._state = state
        self._key = key
        self._federation = federation
        self._lock = threading.Lock()
        self._kept: tuple[pb.Signed, pb.LedgerHead] | None = None
        try:
            state.db.execute(_CREATE)
            row = state.db.execute("SELECT signed FROM witness").fetchone()
            if row is not None:
                signed = parse(pb.Signed, bytes(row[0]))
                self._kept = signed, self._verified(signed)
        except (InvalidMessage, sqlite3.Error) as error:
            raise UsageError(
                f"{state.path} keeps a head of another aggregator's ledger: {error}. Where the aggregator"
                " was set up anew, give this node a new directory, as `state` in its file, and keep the"
                " old one"
            ) from None

    def seen(self) -> pb.Signed | None:
        """What to show the aggregator."""
        with self._lock:
            return self._kept[0] if self._kept else None

    def note(self, signed: pb.Signed) -> None:
        """Keep a head that goes further.

        Raises InvalidMessage, with the reason ROLLED_BACK, for one that goes less far or elsewhere, and
        NotRecorded where it cannot be kept.
        """
        head = self._verified(signed)
        with self._lock:
            kept = self._kept[1] if self._kept else None
            if kept is not None and head.number <= kept.number:
                _check_same(kept, head)
                return
            try:
                with self._state.transaction():
                    self._state.db.execute(
                        "INSERT OR REPLACE INTO witness VALUES (1, ?)",
                        (signed.SerializeToString(),),
                    )
            except (sqlite3.Error, OSError) as error:
                raise NotRecorded(
                    f"the head of the aggregator's ledger cannot be kept in {self._state.path}: {error}"
                ) from None
            self._kept = signed, head

    def _verified(self, signed: pb.Signed) -> pb.LedgerHead:
        head = verified_head(self._key, signed)
        if head.federation != self._federation:
            raise InvalidMessage("the ledger head is another federation's")
        return head


def _check_same(kept: pb.LedgerHead, head: pb.LedgerHead) -> None:
    if (head.number, head.head) == (kept.number, kept.head):
        return
    what = "is behind" if head.number < kept.number else "is another than"
    raise InvalidMessage(
        f"the aggregator shows a ledger of {head.number} entries that {what} the one of {kept.number}"
        " entries that it signed before: its state was replaced",
        pb.REASON_ROLLED_BACK,
    )
