"""The models that jobs start from, where their rules or optimizers need them: on the disk until the first release.

A coordinator brings such a model itself (SubmitModel), and it is what every owner receives: the round's manifest has
its digest. Nothing in it is an owner's. Only a few of one coordinator are kept, so that it cannot fill the disk.
"""

import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cairn.model.safetensors_writer import ModelWriter
from cairn.model.schema import Schema
from cairn.storage.files import is_left_over

MOST_KEPT = 8  # of one coordinator


class FirstModels:
    """A directory with a file for each job, named by the job's digest."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError where the directory cannot be made."""
        self._directory = directory
        self._incoming: frozenset[ModelWriter] = frozenset()
        self._lock = threading.Lock()
        directory.mkdir(exist_ok=True)

    @property
    def missing_bytes(self) -> int:
        """How many bytes of models that are on their way are still to be written. From any thread."""
        return sum(new.missing for new in self._incoming)

    def path(self, job_digest: bytes) -> Path:
        return self._directory / f"{job_digest.hex()}.safetensors"

    @contextmanager
    def begin(self, job_digest: bytes, schema: Schema) -> Iterator[ModelWriter]:
        """Begin the file of a job, which nothing is left of where it is not kept inside."""
        with ModelWriter(self.path(job_digest), schema) as new:
            with self._lock:
                self._incoming |= {new}
            try:
                yield new
            finally:
                with self._lock:
                    self._incoming -= {new}

    def drop(self, job_digest: bytes) -> None:
        """The job has a release, which its next round starts from."""
        self.path(job_digest).unlink(missing_ok=True)

    def make_room(self, others: Iterable[bytes]) -> None:
        """Drop the oldest of these jobs' models until one more may come."""
        kept = [path for path in map(self.path, others) if path.exists()]
        kept.sort(key=lambda path: path.stat().st_mtime_ns)
        for path in kept[: max(0, len(kept) - MOST_KEPT + 1)]:
            path.unlink(missing_ok=True)

    def clear(self, kept: Collection[bytes]) -> None:
        """Drop all models but those of these jobs, and what a crash has left half written."""
        paths = {self.path(digest) for digest in kept}
        for path in self._directory.glob("*.safetensors"):
            if path not in paths:
                path.unlink()
        for path in self._directory.iterdir():
            if is_left_over(path.name):
                path.unlink()
