"""What outlives the aggregator's process: jobs, how rounds ended, the ledger and the last releases.

SQLite in WAL mode with synchronous=FULL: a row that was committed is on the disk. Updates are never
written here; a release is an average and is.
"""

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from aggregator_node.policy import Progress
from cairn.errors import NotFound, UsageError
from cairn.tensors import DIGEST_BYTES
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb

_TABLES = """
CREATE TABLE IF NOT EXISTS job (
  name TEXT PRIMARY KEY, coordinator TEXT NOT NULL, spec BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS round (
  manifest_digest BLOB PRIMARY KEY, job TEXT NOT NULL REFERENCES job, number INTEGER NOT NULL,
  phase INTEGER NOT NULL, manifest BLOB NOT NULL, state INTEGER NOT NULL, reason INTEGER NOT NULL,
  exclusions TEXT NOT NULL, statement BLOB, release_digest BLOB, UNIQUE (job, number, phase)
) STRICT;
CREATE TABLE IF NOT EXISTS ledger (
  number INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL, head BLOB NOT NULL
) STRICT;
"""


@dataclass(frozen=True)
class JobRow:
    name: str
    coordinator: str
    spec: bytes


@dataclass(frozen=True)
class RoundRow:
    """How a round stands or ended. `manifest` and `statement` are serialised `Signed` messages."""

    manifest_digest: bytes
    job: str
    number: int
    phase: "pb.Phase"
    manifest: bytes
    state: "aggregator_pb2.RoundState" = aggregator_pb2.ROUND_STATE_OPEN
    reason: "pb.Reason" = pb.REASON_UNSPECIFIED
    exclusions: tuple[tuple[str, "pb.Reason"], ...] = ()
    statement: bytes | None = None
    release_digest: bytes | None = None


class Store:
    """The aggregator's state directory. One process at a time may open it."""

    def __init__(self, directory: Path) -> None:
        """Open or create the directory. Raises UsageError where it is in use or cannot be used."""
        self._directory = directory
        self._lock = threading.RLock()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (directory / "releases").mkdir(exist_ok=True)
            self._process_lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._process_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._db = sqlite3.connect(
                directory / "aggregator.sqlite", isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_TABLES)
        except BlockingIOError:
            raise UsageError(
                f"{directory} is in use by another aggregator: stop it, or give this one a state"
                " directory of its own"
            ) from None
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"the state directory {directory} cannot be used: {error}") from None

    def close(self) -> None:
        self._db.close()
        os.close(self._process_lock)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything written inside is kept together or not at all."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled back by itself
                    self._db.execute("ROLLBACK")
                raise

    def add_job(self, row: JobRow) -> None:
        self._execute("INSERT INTO job VALUES (?, ?, ?)", row.name, row.coordinator, row.spec)

    def job(self, name: str) -> JobRow | None:
        rows = self._execute("SELECT name, coordinator, spec FROM job WHERE name = ?", name)
        return JobRow(*rows[0]) if rows else None

    def save_round(self, row: RoundRow) -> None:
        self._execute(
            "INSERT OR REPLACE INTO round VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row.manifest_digest,
            row.job,
            row.number,
            row.phase,
            row.manifest,
            row.state,
            row.reason,
            json.dumps(row.exclusions),
            row.statement,
            row.release_digest,
        )

    def round(self, manifest_digest: bytes) -> RoundRow:
        """Raises NotFound for a manifest that this aggregator never signed."""
        rows = self._execute("SELECT * FROM round WHERE manifest_digest = ?", manifest_digest)
        if not rows:
            raise NotFound("there is no round with this manifest")
        return _round_row(rows[0])

    def find_round(self, job: str, number: int, phase: "pb.Phase") -> RoundRow | None:
        rows = self._execute(
            "SELECT * FROM round WHERE job = ? AND number = ? AND phase = ?", job, number, phase
        )
        return _round_row(rows[0]) if rows else None

    def open_rounds(self) -> list[RoundRow]:
        rows = self._execute("SELECT * FROM round WHERE state = ?", aggregator_pb2.ROUND_STATE_OPEN)
        return [_round_row(row) for row in rows]

    def progress(self, job: str) -> Progress:
        """How far a job is, over all its rounds."""
        select = "SELECT coalesce(max(number), 0) FROM round WHERE job = ? AND phase = ?"
        opened = self._execute(select, job, pb.PHASE_TRAIN)[0][0]
        evaluated = self._execute(select, job, pb.PHASE_EVALUATE)[0][0]
        released = self._execute(
            "SELECT number, release_digest FROM round WHERE job = ? AND phase = ? AND state = ?"
            " ORDER BY number",
            job,
            pb.PHASE_TRAIN,
            aggregator_pb2.ROUND_STATE_RELEASED,
        )
        number, digest = released[-1] if released else (0, b"")
        return Progress(opened, len(released), number, digest, evaluated)

    def last_release(self, job: str) -> RoundRow | None:
        rows = self._execute(
            "SELECT * FROM round WHERE job = ? AND phase = ? AND state = ?"
            " ORDER BY number DESC LIMIT 1",
            job,
            pb.PHASE_TRAIN,
            aggregator_pb2.ROUND_STATE_RELEASED,
        )
        return _round_row(rows[0]) if rows else None

    def head(self) -> bytes:
        """The head of the ledger: 32 zero bytes before the first entry."""
        rows = self._execute("SELECT head FROM ledger ORDER BY number DESC LIMIT 1")
        return bytes(rows[0][0]) if rows else bytes(DIGEST_BYTES)

    def append(self, kind: str, facts: dict[str, Any]) -> None:
        """Add an entry to the ledger, chained to the one before it."""
        body = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
        with self._lock:
            head = sha256(self.head() + kind.encode() + b"\0" + body).digest()
            self._execute(
                "INSERT INTO ledger (kind, body, head) VALUES (?, ?, ?)", kind, body, head
            )

    def entries(self, first: int, limit: int) -> list[tuple[int, str, bytes, bytes]]:
        return self._execute(
            "SELECT number, kind, body, head FROM ledger WHERE number >= ? ORDER BY number LIMIT ?",
            first,
            limit,
        )

    def release_path(self, manifest_digest: bytes) -> Path:
        """Where the average of a round is kept until that of a later one replaces it."""
        return self._directory / "releases" / f"{manifest_digest.hex()}.safetensors"

    def clear_left_over_releases(self) -> None:
        """Delete files of releases that a crash kept from being recorded, and of replaced ones."""
        rows = self._execute(
            "SELECT manifest_digest, max(number) FROM round WHERE phase = ? AND state = ? GROUP BY job",
            pb.PHASE_TRAIN,
            aggregator_pb2.ROUND_STATE_RELEASED,
        )
        current = {self.release_path(row[0]) for row in rows}
        for path in (self._directory / "releases").iterdir():
            if path not in current:
                path.unlink()

    def _execute(self, statement: str, *values: object) -> list[Any]:
        with self._lock:
            return self._db.execute(statement, values).fetchall()


def _round_row(values: tuple[Any, ...]) -> RoundRow:
    row = RoundRow(*values)
    exclusions = tuple((owner, reason) for owner, reason in json.loads(values[7]))
    return RoundRow(**{**row.__dict__, "exclusions": exclusions})
