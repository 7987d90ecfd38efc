"""Keeps what was read from files up to date: reads it again when they change, and survives bad ones."""

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from cairn.identity.credentials import Identity, load_identity
from cairn.identity.trust import PeerTrust, load_pinned

T = TypeVar("T")

log = structlog.get_logger()


class Reloading(Generic[T]):
    """A value that is what its files say. Every method may be called from any thread.

    Files that cannot be used, such as a certificate whose key has not been written yet, leave the value
    as it was; that is logged once.
    """

    def __init__(self, value: T, files: Sequence[Path], read: Callable[[], T]) -> None:
        self._lock = threading.Lock()
        self._value = value
        self._files = files
        self._read = read
        self._seen: list[bytes | None] | None = None
        self._trouble = ""

    def current(self) -> T:
        """The value now. Never raises: it is asked in the middle of handshakes."""
        with self._lock:
            # A few kilobytes are compared whole: times are too coarse for two changes in a row.
            found = [_content(path) for path in self._files]
            if found != self._seen or self._trouble:  # trouble may end without a change: see chmod
                self._seen = found
                self._take()
            return self._value

    def _take(self) -> None:
        try:
            value = self._read()
        except Exception as error:  # noqa: BLE001 - whatever a file holds, the node goes on with what it has
            if str(error) != self._trouble:
                log.error(
                    "a changed file cannot be used, what was read before stays", why=str(error)
                )
            self._trouble = str(error) or type(error).__name__
            return
        self._trouble = ""
        if value != self._value:
            log.info("files renewed", files=[str(path) for path in self._files])
            self._value = value


def reloading_identity(identity: Identity) -> Reloading[Identity]:
    """The identity as its files have it; they must go on naming the same node."""
    files = identity.files
    return Reloading(
        identity,
        (files.certificate, files.key, files.authority),
        lambda: load_identity(files, identity.node, datetime.now(UTC)),
    )


def reloading_pin(pinned: PeerTrust) -> Reloading[PeerTrust]:
    """The pinned certificates as their file has them."""
    return Reloading(
        pinned,
        (pinned.file,),
        lambda: load_pinned(pinned.file, pinned.role, pinned.federation, datetime.now(UTC)),
    )


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
