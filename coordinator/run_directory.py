"""The folder of a run: the model, its statement, the history, and where to go on after a crash.

    model.safetensors   the model of the last release; before the first, the model it starts from
    release.json        the last signed release statement of a model
    evaluation.json     the last signed statement of an evaluation
    statistics.json     what a job of statistics has counted, from its model.safetensors
    best.safetensors    the model of the best release so far, where the job looks for it
    best.json           the signed release statement of that model
    history.jsonl       a line for each round: round, contributors, group, metrics, left_out, seconds, evaluation,
                        best
    checkpoint.json     which job this is and how far it is, and which release is the best

Each file is replaced in one step and the checkpoint comes last, so a crash leaves the state of the
round before or after, and what was done in between is done again. Only the files of the best come after the
checkpoint that decides on it: an evaluation that is done again might not have the same owners, and decide otherwise.
They are there before the next round begins, so that they can still be made of the last release after a crash.
"""

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cairn.errors import InvalidMessage, UsageError
from cairn.ledger.files import MAX_LEDGER_BYTES
from cairn.model.safetensors_reader import map_values, read_model
from cairn.model.safetensors_writer import ModelWriter
from cairn.model.schema import MAX_MODEL_BYTES, Schema
from cairn.model.validation import has_negative_zeros, pieces_without_negative_zeros
from cairn.protocol.messages import parse
from cairn.protocol.statements import envelope, from_envelope
from cairn.protocol.statistics import Statistics, schema_of
from cairn.protocol.summary import report_of
from cairn.runtime.buffer import Buffer
from cairn.runtime.failpoints import failpoint
from cairn.runtime.foreign_files import Incomplete, content_of, pieces_of
from cairn.runtime.quoting import quoted
from cairn.storage import fsync
from cairn.storage.directory import run_folder
from cairn.storage.files import clear_left_overs, write_atomically
from cairn.v1 import round_pb2 as pb
from coordinator.backoff import Failing
from coordinator.best_release import BestSoFar


@dataclass(frozen=True)
class Checkpoint:
    """`round` is the number of the last round whose line is in the history.

    `failing` is what is known of owners that fail again and again (coordinator/backoff.py).
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    job: str
    job_digest: str
    round: int = 0
    released: int = 0
    completed: bool = False
    failing: Failing = field(default_factory=dict)
    best: BestSoFar | None = None


_CHECKPOINT = TypeAdapter(Checkpoint)


class RunFolder:
    """One run on disk. One process at a time may open it."""

    def __init__(self, path: Path) -> None:
        """Open or create the folder. Raises UsageError where it cannot be used."""
        self.path = path
        self.model_path = path / "model.safetensors"
        self.best_path = path / "best.safetensors"
        self.statistics_path = path / "statistics.json"
        self._history_path = path / "history.jsonl"
        self._checkpoint_path = path / "checkpoint.json"
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            clear_left_overs(path)
        except BlockingIOError:
            self.close()
            raise UsageError(
                f"{path} is in use by another coordinator: wait for it, or choose another --out"
            ) from None
        except OSError as error:
            raise run_folder(path).unusable(error) from None

    def close(self) -> None:
        """Leave it to others."""
        os.close(self._lock)

    def checkpoint(self) -> Checkpoint | None:
        """Where the run stands, or None for a new folder."""
        try:
            return _CHECKPOINT.validate_json(content_of(self._checkpoint_path))
        except Incomplete:
            return None
        except (ValidationError, InvalidMessage) as error:
            why = _first(error) if isinstance(error, ValidationError) else error
            raise UsageError(
                f"{self._checkpoint_path} cannot be read ({why}): move the folder away to start"
                " the job anew"
            ) from None

    def begin(self, checkpoint: Checkpoint, schema: Schema, payload: Buffer) -> None:
        """Write what a new run starts from: the model with +0.0 for every -0.0, which owners refuse."""
        self._write_first_model(schema, payload)
        failpoint("coordinator.run.before_checkpoint")
        self._save(checkpoint)

    def mend_first_model(self, checkpoint: Checkpoint) -> None:
        """Do the same to a model that an earlier version has written, before it has a release."""
        schema, payload = self.model()
        if not checkpoint.released and has_negative_zeros(schema, payload):
            self._write_first_model(schema, payload)

    def model(self) -> tuple[Schema, memoryview]:
        return read_model(self.model_path)

    def values(self, schema: Schema) -> memoryview:
        """The values of the model, which has this schema: the file itself, mapped."""
        return map_values(self.model_path, schema)

    def new_model(self, schema: Schema) -> ModelWriter:
        """Begin the file that becomes the model once it is kept."""
        return ModelWriter(self.model_path, schema)

    def save_release(self, statement: pb.Signed, model: ModelWriter) -> None:
        """Keep a release and its statement."""
        model.keep()
        failpoint("coordinator.model.saved")
        self._write_json("release.json", envelope(statement))
        failpoint("coordinator.statement.saved")

    def save_evaluation(self, statement: pb.Signed) -> None:
        self._write_json("evaluation.json", envelope(statement))

    def finish_round(self, checkpoint: Checkpoint, line: dict[str, Any]) -> None:
        """Add the round's line to the history, and move the checkpoint behind it."""
        with self._history_path.open("a", encoding="utf-8") as history:
            history.write(json.dumps(line) + "\n")
            history.flush()
            fsync.sync(history.fileno())
        failpoint("coordinator.checkpoint.before")
        self._save(checkpoint)
        failpoint("coordinator.checkpoint.after")

    def keep_best(self) -> None:
        """Keep the last release, with its statement, as the best."""
        write_atomically(self.best_path, pieces_of(self.model_path, MAX_MODEL_BYTES))
        failpoint("coordinator.best.model_saved")
        write_atomically(self.path / "best.json", [content_of(self.path / "release.json")])
        failpoint("coordinator.best.statement_saved")

    def mend_best(self, best: BestSoFar | None, model_digest: bytes) -> None:
        """Keep the last release, if it is the best: a crash may have come after the checkpoint that says so.

        The model has this digest: it may be a later one than its statement, and is none of the best then.
        """
        last = self._last_statement()
        if best is None or last is None:
            return
        if (last.round, last.release_digest) == (best.round, model_digest):
            self.keep_best()

    def save_statistics(self, job: str, statistics: Statistics) -> None:
        """Keep what the model of the last release says, as figures."""
        payload = self.values(schema_of(statistics))
        self._write_json(self.statistics_path.name, report_of(job, statistics, payload))

    def finish(self, checkpoint: Checkpoint) -> None:
        self._save(replace(checkpoint, completed=True))
        failpoint("coordinator.job.finished")

    def prune_history(self, last_round: int) -> None:
        """Drop lines behind the checkpoint, left by a crash; their rounds are done again."""
        kept = []
        for line in self._history():
            try:
                if json.loads(line)["round"] <= last_round:
                    kept.append(line.decode())
            except (ValueError, KeyError, TypeError, RecursionError):
                break  # the torn end of a line that was being written
        text = "".join(f"{line}\n" for line in kept)
        write_atomically(self._history_path, [text.encode()])

    def _history(self) -> list[bytes]:
        try:
            return content_of(self._history_path, MAX_LEDGER_BYTES).splitlines()
        except Incomplete:
            return []
        except InvalidMessage as error:
            raise UsageError(
                f"{self._history_path}: {error}. Move the file away: the run goes on without its earlier lines"
            ) from None

    def _write_first_model(self, schema: Schema, payload: Buffer) -> None:
        with ModelWriter(self.model_path, schema) as new:
            for piece in pieces_without_negative_zeros(schema, payload):
                new.write(piece)
            new.keep()

    def _save(self, checkpoint: Checkpoint) -> None:
        self._write_json("checkpoint.json", asdict(checkpoint))

    def _write_json(self, name: str, values: dict[str, Any]) -> None:
        text = json.dumps(values, indent=2) + "\n"
        write_atomically(self.path / name, [text.encode()])

    def _last_statement(self) -> pb.ReleaseStatement | None:
        """What release.json states; None where it is not there, or is none."""
        try:
            text = content_of(self.path / "release.json").decode()
            return parse(pb.ReleaseStatement, from_envelope(text).body)
        except (InvalidMessage, UnicodeDecodeError):
            return None


def _first(error: ValidationError) -> str:
    """The first thing that is wrong with a checkpoint, and where."""
    detail = error.errors(include_url=False)[0]
    where = quoted(".".join(str(part) for part in detail["loc"]))
    return f"{where}: {detail['msg']}" if where else detail["msg"]
