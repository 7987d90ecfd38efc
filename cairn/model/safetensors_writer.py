"""Writes models, as they arrive, so that they are there whole or not at all.

A model is written in its canonical form (`cairn/model/schema.py`) and hashed on the way.
"""

import io
import secrets
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

from cairn.errors import InvalidMessage
from cairn.model.schema import CHUNK_BYTES, Schema
from cairn.runtime.buffer import Buffer
from cairn.storage import fsync
from cairn.storage.files import sync_directory

_SYNC_BYTES = 64 << 20


def write_model(path: Path, schema: Schema, payload: Buffer) -> bytes:
    """Write the canonical file, atomically, and return its BLAKE3, which is the model's digest.

    Raises InvalidMessage where the payload has not the size of the schema, and OSError as
    `write_atomically` does.
    """
    values = memoryview(payload).cast("B")
    if len(values) != schema.total_bytes:
        raise InvalidMessage(f"the values have {len(values)} bytes, not {schema.total_bytes}")
    with ModelWriter(path, schema) as new:
        for start in range(0, len(values), CHUNK_BYTES):
            new.write(values[start : start + CHUNK_BYTES])
        new.keep()
        return new.digest()


class ModelWriter:
    """A model file while it is written: until `keep` the path holds what it held before.

    Used as a context it leaves nothing behind where it was not kept; a crash can leave a file
    `.cairn-*.tmp` beside the path, which may be deleted.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        """Begin the canonical file of this schema. Raises OSError as the file system does."""
        self._path = path
        self._temporary = path.parent / f".cairn-{secrets.token_hex(8)}.tmp"
        self._hasher = schema.hasher()
        self.missing = schema.total_bytes
        self.written = 0
        self._unsynced = 0
        self._beside: ThreadPoolExecutor | None = None
        self._syncing: Future[None] | None = None
        self._file = self._temporary.open("xb", buffering=0)
        try:
            _write_all(self._file, schema.header())
        except BaseException:
            self.discard()
            raise

    def write(self, chunk: Buffer) -> None:
        """Add the next bytes of the values. Raises InvalidMessage for more than the schema has."""
        if len(chunk) > self.missing:
            raise InvalidMessage("the model has more bytes than its schema")
        self.missing -= len(chunk)
        self.written += len(chunk)
        self._hasher.update(chunk)
        try:
            _write_all(self._file, chunk)
            self._unsynced += len(chunk)
            if self._unsynced >= _SYNC_BYTES and (self._syncing is None or self._syncing.done()):
                self._sync_beside()
        except OSError as error:  # it names no file, and whoever frees the disk must know which
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def digest(self) -> bytes:
        """The BLAKE3 of the file so far, which is the model's digest once all is written."""
        return self._hasher.digest()

    def keep(self) -> None:
        """Put the whole file in its place, durably and in one step. Raises InvalidMessage where bytes lack."""
        if self.missing:
            raise InvalidMessage(f"the model lacks {self.missing} bytes of its schema")
        self._end_sync()
        with self._file:
            fsync.sync(self._file.fileno())
        self._temporary.replace(self._path)
        sync_directory(self._path.parent)

    def discard(self) -> None:
        """Leave the path as it was; after `keep` this does nothing."""
        with suppress(OSError):  # the file goes away
            self._end_sync()
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _sync_beside(self) -> None:
        """Have the disk take what is there, while more arrives: else `keep` has to wait for all of it.

        Raises OSError where it did not take what came before: the kernel says so once, and forgets.
        """
        self._wait_for_sync()
        if self._beside is None:
            self._beside = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._syncing = self._beside.submit(fsync.sync_data, self._file.fileno())
        self._unsynced = 0

    def _end_sync(self) -> None:
        if self._beside is not None:
            self._beside.shutdown()  # before the file is closed, whose number may be another's then
        self._wait_for_sync()

    def _wait_for_sync(self) -> None:
        if self._syncing is not None:
            self._syncing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


def _write_all(file: "io.FileIO", data: Buffer) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
