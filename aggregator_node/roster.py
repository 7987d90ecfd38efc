"""Who may take part: the owners and the revoked certificates of the aggregator's file, read again when it changes.

A file that cannot be used, because it is broken or gone, leaves what was read last for MAX_AGE_SECONDS, so that a slip
of an editor ends no round. After that nobody is admitted before the file is good again: it may have been meant to
remove somebody. Meanwhile the log says so at once and every minute.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from cairn.errors import CallerNotAllowed, Unavailable, UsageError
from cairn.identity.certified import Certified
from cairn.identity.credentials import RENEW
from cairn.identity.names import Role
from cairn.runtime.clock import Clock
from cairn.v1 import round_pb2 as pb

log = structlog.get_logger()

MAX_AGE_SECONDS = 3600
_REMIND_EVERY_SECONDS = 60


@dataclass(frozen=True)
class Listed:
    """What the aggregator's file says of who may take part; `revoked` holds fingerprints."""

    owners: frozenset[str]
    revoked: frozenset[str] = frozenset()


@dataclass
class _Trouble:
    """The file cannot be used."""

    why: str
    since: float
    said: float


class Roster:
    """Every method may be called from any thread."""

    def __init__(self, path: Path, read: Callable[[Path], Listed], clock: Clock) -> None:
        """Read the file; `read` raises UsageError for one that cannot be used."""
        self._path = path
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = _content(path)
        self._listed = read(path)
        self._trouble: _Trouble | None = None

    def check(self, caller: Certified) -> None:
        """Raise CallerNotAllowed for an owner that is not listed or a certificate that is revoked.

        Raises Unavailable where the file could not be used for too long.
        """
        listed = self.look()
        if listed is None:
            raise Unavailable(
                "this aggregator admits nobody before its own file can be read again; whoever runs it must mend"
                " the file"
            )
        node = caller.node
        if not listed.revoked.isdisjoint(caller.fingerprints):
            raise CallerNotAllowed(
                f"the certificate of {node} was revoked: the aggregator's file lists its fingerprint under"
                f" revoked; {RENEW}"
            )
        if node.role is Role.OWNER and node.name not in listed.owners:
            raise CallerNotAllowed(
                f"{node} is not on the roster: the aggregator's file does not list it under owners",
                pb.REASON_UNKNOWN_OWNER,
            )

    def owners(self) -> frozenset[str]:
        """The owners that are listed now; nobody where the file could not be used for too long."""
        listed = self.look()
        return listed.owners if listed is not None else frozenset()

    def look(self) -> Listed | None:
        """What the file says now, or said last; None where that was too long ago."""
        with self._lock:
            # Compared whole, as its times are too coarse for two changes in a row.
            found = _content(self._path)
            if found != self._seen:
                self._seen = found
                self._take()
            return self._listed if self._trouble is None or self._is_kept(self._trouble) else None

    def _take(self) -> None:
        try:
            listed = self._read_again()
        except Exception as error:  # noqa: BLE001 - whatever the file holds, it is not taken for a good one
            now = self._clock.monotonic()
            since = self._trouble.since if self._trouble is not None else now
            why = str(error) or type(error).__name__
            self._trouble = _Trouble(why, since, now - _REMIND_EVERY_SECONDS)
            return
        if self._trouble is not None:
            log.info("the file can be used again")
            self._trouble = None
        _log_changes(self._listed, listed)
        self._listed = listed

    def _read_again(self) -> Listed:
        if self._seen is None:
            raise UsageError(f"{self._path} is no file that this account can read: put it back")
        return self._read(self._path)

    def _is_kept(self, trouble: _Trouble) -> bool:
        """Whether what was read last still holds; says so from time to time."""
        now = self._clock.monotonic()
        left = trouble.since + MAX_AGE_SECONDS - now
        if now - trouble.said >= _REMIND_EVERY_SECONDS:
            trouble.said = now
            if left > 0:
                log.error(
                    "the changed file cannot be used, the roster stays",
                    reason=trouble.why,
                    nobody_is_admitted_in_seconds=round(left),
                )
            else:
                log.critical(
                    "the changed file cannot be used, nobody is admitted", reason=trouble.why
                )
        return left > 0


def _log_changes(before: Listed, now: Listed) -> None:
    for name in sorted(before.owners - now.owners):
        log.warning("owner removed from the roster", owner=name)
    for name in sorted(now.owners - before.owners):
        log.info("owner added to the roster", owner=name)
    for fingerprint in sorted(now.revoked - before.revoked):
        log.warning("certificate revoked", fingerprint=fingerprint)
    for fingerprint in sorted(before.revoked - now.revoked):
        log.warning("certificate no longer revoked", fingerprint=fingerprint)


def _content(path: Path) -> bytes | None:
    """What the file holds; None where it cannot be read."""
    try:
        return path.read_bytes() if path.is_file() else None  # to open a FIFO would wait for ever
    except OSError:
        return None
