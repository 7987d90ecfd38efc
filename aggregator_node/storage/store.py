"""What outlives the aggregator's process: jobs, how rounds ended, the ledger and the last releases.

Updates are never written here; a release is an average and is. The state of a job's optimizer, which is made of averages, lies
beside its last release and is never sent.
"""

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from aggregator_node.storage.first_models import FirstModels
from aggregator_node.storage.integrity import check_state
from aggregator_node.storage.rows import JobRow, Progress, RoundRow
from cairn.errors import InvalidMessage, NotFound, Unavailable, UsageError
from cairn.ledger.chain import Entry, Ledger
from cairn.protocol.messages import digest_of
from cairn.runtime.clock import Clock
from cairn.storage.database import StateDirectory
from cairn.storage.directory import state_directory
from cairn.storage.files import is_left_over
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb

log = structlog.get_logger()

_RELEASE = re.compile(r"[0-9a-f]{64}(\.optimizer)?\.safetensors")
_BOOKS_BYTES = 1 << 20  # for what a round adds to the database

_TABLES = """
CREATE TABLE IF NOT EXISTS job (
  name TEXT PRIMARY KEY, coordinator TEXT NOT NULL, spec BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS round (
  manifest_digest BLOB PRIMARY KEY, job TEXT NOT NULL REFERENCES job, number INTEGER NOT NULL,
  phase INTEGER NOT NULL, manifest BLOB NOT NULL, state INTEGER NOT NULL, reason INTEGER NOT NULL,
  exclusions TEXT NOT NULL, statement BLOB, release_digest BLOB, UNIQUE (job, number, phase)
) STRICT;
CREATE TABLE IF NOT EXISTS epoch (
  job TEXT NOT NULL REFERENCES job, number INTEGER NOT NULL, process BLOB NOT NULL,
  PRIMARY KEY (job, number), UNIQUE (job, process)
) STRICT;
CREATE TABLE IF NOT EXISTS optimizer_state (
  manifest_digest BLOB PRIMARY KEY REFERENCES round, digest BLOB NOT NULL
) STRICT;
"""


class Store:
    """The aggregator's state directory. One process at a time may open it.

    Beside the ledger, which owners and coordinators may read, there is a second chain: what was
    refused, and to whom. It stays here, because the time of one owner's refusal is that owner's.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        """Open or create the directory.

        Raises UsageError where it is in use, cannot be used, or its ledger was tampered with.
        """
        self.path = path
        self._state = StateDirectory(path, "aggregator.sqlite")
        self._db = self._state.db
        try:
            (path / "releases").mkdir(exist_ok=True)
            self.first_models = FirstModels(path / "models")
            self._db.executescript(_TABLES)
            self._ledger = Ledger(self._db, "ledger", clock)
            self._refusals = Ledger(self._db, "refusals", clock)
            self._check()
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise state_directory(path).unusable(error) from None
        except UsageError:
            self.close()
            raise

    def close(self) -> None:
        self._state.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything written inside is kept together or not at all.

        Raises Unavailable, with the reason STORAGE_FAILED, where the disk is full.
        """
        try:
            with self._state.transaction():
                yield
        except (sqlite3.Error, OSError) as error:
            log.error("the state cannot be written", directory=str(self.path), trouble=str(error))
            raise Unavailable(
                "the aggregator cannot write down what it promises; its disk may be full",
                pb.REASON_STORAGE_FAILED,
            ) from error

    def add_job(self, row: JobRow) -> None:
        self._execute("INSERT INTO job VALUES (?, ?, ?)", row.name, row.coordinator, row.spec)

    def job(self, name: str) -> JobRow | None:
        rows = self._execute("SELECT name, coordinator, spec FROM job WHERE name = ?", name)
        return JobRow(*rows[0]) if rows else None

    def jobs_of(self, coordinator: str) -> list[JobRow]:
        select = "SELECT name, coordinator, spec FROM job WHERE coordinator = ?"
        return [JobRow(*row) for row in self._execute(select, coordinator)]

    def epochs(self, job: str) -> dict[int, bytes]:
        """The last epochs of a job's coordinators, each with the process whose it is."""
        return dict(self._execute("SELECT number, process FROM epoch WHERE job = ?", job))

    def add_epoch(self, job: str, number: int, process: bytes, *, kept: int) -> None:
        """Begin an epoch, inside a transaction, and forget those before the last `kept`."""
        self._execute("INSERT INTO epoch VALUES (?, ?, ?)", job, number, process)
        self._execute("DELETE FROM epoch WHERE job = ? AND number <= ?", job, number - kept)

    def save_round(self, row: RoundRow) -> None:
        self._execute(
            # Not OR REPLACE, which would put a second opening of a number in the place of the first.
            "INSERT INTO round VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (manifest_digest)"
            " DO UPDATE SET state = excluded.state, reason = excluded.reason,"
            " exclusions = excluded.exclusions, statement = excluded.statement,"
            " release_digest = excluded.release_digest",
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
        rows = self._rounds("SELECT * FROM round WHERE manifest_digest = ?", manifest_digest)
        if not rows:
            raise NotFound("there is no round with this manifest")
        return rows[0]

    def find_round(self, job: str, number: int, phase: "pb.Phase") -> RoundRow | None:
        select = "SELECT * FROM round WHERE job = ? AND number = ? AND phase = ?"
        return next(iter(self._rounds(select, job, number, phase)), None)

    def rounds(self) -> list[RoundRow]:
        """All rounds there ever were."""
        return self._rounds("SELECT * FROM round")

    def open_rounds(self) -> list[RoundRow]:
        return self._rounds("SELECT * FROM round WHERE state = ?", aggregator_pb2.ROUND_STATE_OPEN)

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
        aborts = self._execute(
            "SELECT count(*) FROM round WHERE job = ? AND number > ? AND state = ? AND reason IN (?, ?)",
            job,
            number,
            aggregator_pb2.ROUND_STATE_ABORTED,
            pb.REASON_ABORTED,
            pb.REASON_MODEL_MISSING,  # replaced by its coordinator
        )[0][0]
        return Progress(opened, len(released), number, digest, evaluated, aborts)

    def unreleased_bytes(self, coordinator: str, least: int) -> int:
        """The size of the specifications of the coordinator's jobs that have no release yet, each `least` or more."""
        return int(
            self._execute(
                "SELECT coalesce(sum(max(length(spec), ?)), 0) FROM job WHERE coordinator = ? AND NOT EXISTS"
                " (SELECT 1 FROM round WHERE job = job.name AND release_digest IS NOT NULL)",
                least,
                coordinator,
            )[0][0]
        )

    def results(self, job: str, after: int) -> list[RoundRow]:
        """The trainings of a job, after this one, that were released, or told to have a result out of its range."""
        released, non_finite = aggregator_pb2.ROUND_STATE_RELEASED, pb.REASON_NON_FINITE
        select = "SELECT * FROM round WHERE job = ? AND number > ? AND phase = ? AND (state = ? OR reason = ?)"
        return self._rounds(select, job, after, pb.PHASE_TRAIN, released, non_finite)

    def last_release(self, job: str) -> RoundRow | None:
        released = aggregator_pb2.ROUND_STATE_RELEASED
        select = "SELECT * FROM round WHERE job = ? AND phase = ? AND state = ? ORDER BY number DESC LIMIT 1"
        return next(iter(self._rounds(select, job, pb.PHASE_TRAIN, released)), None)

    def ledger_head(self) -> tuple[int, bytes]:
        """How many entries the ledger has, and its head."""
        with self._state.lock:
            return self._ledger.head()

    def ledger_head_at(self, number: int) -> bytes | None:
        """The head after so many entries; None where there are fewer."""
        with self._state.lock:
            return self._ledger.head_at(number)

    def append(self, kind: str, facts: Mapping[str, object]) -> None:
        """Add an entry to the ledger, inside a transaction."""
        self._ledger.append(kind, facts)

    def append_refusal(self, kind: str, facts: Mapping[str, object]) -> None:
        """Record what was refused."""
        with self.transaction():
            self._refusals.append(kind, facts)

    def entries(self, first: int, limit: int) -> list[Entry]:
        """At most `limit` entries of the ledger, from number `first` on."""
        with self._state.lock:
            return self._ledger.entries(first, limit)

    def release_path(self, manifest_digest: bytes) -> Path:
        """Where the average of a round is kept until that of a later one replaces it."""
        return self.path / "releases" / f"{manifest_digest.hex()}.safetensors"

    def optimizer_path(self, manifest_digest: bytes) -> Path:
        """Where the state that the optimizer had after the release of a round is kept, as long as the release is."""
        return self.path / "releases" / f"{manifest_digest.hex()}.optimizer.safetensors"

    def save_optimizer_digest(self, manifest_digest: bytes, digest: bytes) -> None:
        """Say which state belongs to the release of a round, inside its transaction."""
        self._execute("INSERT INTO optimizer_state VALUES (?, ?)", manifest_digest, digest)

    def optimizer_digest(self, manifest_digest: bytes) -> bytes | None:
        """The digest of the state that belongs to a release; None where none does."""
        select = "SELECT digest FROM optimizer_state WHERE manifest_digest = ?"
        rows = self._execute(select, manifest_digest)
        return bytes(rows[0][0]) if rows else None

    def delete_release(self, manifest_digest: bytes) -> None:
        """Delete the files of a release, where they are; what is recorded of it stays. Raises OSError."""
        self.release_path(manifest_digest).unlink(missing_ok=True)
        self.optimizer_path(manifest_digest).unlink(missing_ok=True)

    def check_room(self, nbytes: int) -> None:
        """Raise Unavailable where the disk has no room for so many bytes, beside the models that are on their way."""
        free = self._free_bytes() - self.first_models.missing_bytes
        if free < nbytes + _BOOKS_BYTES:
            log.error("the disk is full", directory=str(self.path), free_bytes=free, needed=nbytes)
            raise Unavailable(
                "the aggregator's disk has no room for this round's release",
                pb.REASON_STORAGE_FAILED,
            )

    def can_write(self) -> bool:
        """Whether the disk is there, and has room for what a round adds to the books, at this moment."""
        try:
            return self._free_bytes() >= _BOOKS_BYTES
        except OSError:
            return False

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self.path).free

    def clear_left_over_releases(self) -> None:
        """Delete files of releases that a crash kept from being recorded, of replaced ones, and of first models.

        Files of other names are not this aggregator's and stay.
        """
        rows = self._execute(
            "SELECT manifest_digest, max(number) FROM round WHERE phase = ? AND state = ? GROUP BY job",
            pb.PHASE_TRAIN,
            aggregator_pb2.ROUND_STATE_RELEASED,
        )
        files = (self.release_path, self.optimizer_path)
        current = {path_of(row[0]) for row in rows for path_of in files}
        for path in (self.path / "releases").iterdir():
            is_own = _RELEASE.fullmatch(path.name) is not None or is_left_over(path.name)
            if is_own and path not in current:
                path.unlink()
        without_release = self._execute(
            "SELECT spec FROM job WHERE NOT EXISTS"
            " (SELECT 1 FROM round WHERE job = job.name AND release_digest IS NOT NULL)"
        )
        self.first_models.clear({digest_of(spec) for (spec,) in without_release})

    def _check(self) -> None:
        """Raise UsageError where ledger and rows are not those that this aggregator wrote."""
        select = "SELECT name, coordinator, spec FROM job"
        try:
            jobs = [JobRow(*row) for row in self._execute(select)]
            states = dict(self._execute("SELECT manifest_digest, digest FROM optimizer_state"))
            check_state(self._ledger.all(), jobs, self.rounds(), states)
        except (InvalidMessage, ValueError, TypeError) as error:
            raise UsageError(
                f"the state in {self.path} was tampered with: {error}. Put an unchanged copy of the"
                " directory back"
            ) from None

    def _rounds(self, select: str, *values: object) -> list[RoundRow]:
        return [RoundRow.of(row) for row in self._execute(select, *values)]

    def _execute(self, statement: str, *values: object) -> list[Any]:
        with self._state.lock:
            return self._db.execute(statement, values).fetchall()
