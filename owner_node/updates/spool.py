"""Keeps this owner's finished update on its own disk until it knows how the round has ended.

    updates/<manifest digest>.update    the payload, byte by byte as it leaves; mode 0600

What the payload belongs to and says of itself (its digest, examples, metrics, encoding) is the ledger's entry
`sent`. So the file is worth something only beside that entry, and only with the bytes that it names.

A thread of its own writes the file. It is whole and in its place before `sent` is recorded, so a node that
dies after that finds it. It is on the disk before the commit leaves, without which nothing of an update
counts: a power cut may spoil the file before, never after.
"""

import mmap
import os
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from cairn.model.schema import CHUNK_BYTES
from cairn.model.update_encoding import UpdateLayout
from cairn.storage import fsync
from cairn.storage.files import is_left_over, sync_directory
from owner_node import events
from owner_node.events import Observer

_SUFFIX = ".update"
_UPDATE = re.compile(rf"([0-9a-f]{{64}}){re.escape(_SUFFIX)}")


class UpdateSpool:
    """The folder. `is_needed` says, of a manifest's digest, whether its update may have to leave again."""

    def __init__(self, state: Path, is_needed: Callable[[bytes], bool], tell: Observer) -> None:
        """Remove what is left over of rounds that were settled, or not begun to be pushed."""
        self.path = state / "updates"
        self._is_needed = is_needed
        self._tell = tell
        self._writing = threading.Lock()  # held while an update is on its way to the disk
        self.tidy()

    def writer(self, manifest_digest: bytes) -> "SpoolWriter":
        """Prepare to keep the update of this round, one at a time."""
        self.tidy()
        return SpoolWriter(self._file_of(manifest_digest), self._writing, self._tell)

    def find(
        self, manifest_digest: bytes, layout: UpdateLayout, payload_digest: bytes
    ) -> memoryview | None:
        """The payload that was kept for this round, where it is there and has this digest."""
        path = self._file_of(manifest_digest)
        try:
            payload = _map(path)
        except OSError as error:
            self._tell(events.UpdateUnreadable(path, error))
            return None
        if len(payload) != layout.total_bytes or layout.digest(payload) != payload_digest:
            self._tell(events.UpdateDamaged(path))
            return None
        return payload

    def remove(self, manifest_digest: bytes) -> None:
        """This update never leaves again. Never raises."""
        _remove(self._file_of(manifest_digest), self._tell)

    def tidy(self) -> None:
        """Remove every file of ours that is not needed, or no longer. Never raises. From any thread.

        Not while one is written: it is not known yet to be needed. The next one removes the rest.
        """
        if not self._writing.acquire(blocking=False):
            return
        try:
            self._remove_unneeded()
        finally:
            self._writing.release()

    def _remove_unneeded(self) -> None:
        try:
            paths = list(self.path.iterdir())
        except OSError:  # nothing was kept yet
            return
        for path in paths:
            digest = _digest_of(path)
            if is_left_over(path.name) or (digest is not None and not self._is_needed(digest)):
                _remove(path, self._tell)

    def _file_of(self, manifest_digest: bytes) -> Path:
        return self.path / f"{manifest_digest.hex()}{_SUFFIX}"


class SpoolWriter:
    """One update on its way to the disk. As a context it ends when the thread has let go of the payload.

    A disk that is full or broken does not end the round: then nothing is kept, which is told.
    """

    def __init__(self, path: Path, writing: threading.Lock, tell: Observer) -> None:
        self._path = path
        self._writing = writing
        self._tell = tell
        self._temporary = path.parent / f".cairn-{secrets.token_hex(8)}.tmp"
        self._placed = threading.Event()
        self._thread: threading.Thread | None = None

    def write(self, payload: memoryview) -> None:
        """Begin to write the payload, which must not change any more."""
        self._thread = threading.Thread(target=self._run, args=(payload,), name="spool")
        self._thread.start()

    def wait_until_placed(self) -> None:
        """Wait until the file is whole and in its place, or is known not to come."""
        if self._thread is not None:
            self._placed.wait()

    def wait_until_durable(self) -> None:
        """Wait until the file is on the disk, or is known not to come."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, payload: memoryview) -> None:
        try:
            self._write(payload)
        except OSError as error:
            _remove(self._temporary, self._tell)
            _remove(self._path, self._tell)
            self._tell(events.UpdateNotKept(self._path, error))
        finally:
            self._placed.set()

    def _write(self, payload: memoryview) -> None:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for start in range(0, len(payload), CHUNK_BYTES):
                _write_all(descriptor, payload[start : start + CHUNK_BYTES])
            self._temporary.replace(self._path)
            self._placed.set()
            fsync.sync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(self._path.parent)

    def __enter__(self) -> Self:
        self._writing.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.wait_until_durable()
        self._writing.release()


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _digest_of(path: Path) -> bytes | None:
    """The digest that names an update's file; None for a file that is none."""
    named = _UPDATE.fullmatch(path.name)
    return bytes.fromhex(named[1]) if named is not None else None


def _remove(path: Path, tell: Observer) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        tell(events.FileNotRemoved(path, error))
