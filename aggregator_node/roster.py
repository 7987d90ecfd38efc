"""Who may take part: the owners of the aggregator's file, read again whenever it changes."""

import threading
from collections.abc import Callable, Collection
from pathlib import Path

import structlog

from cairn.errors import CallerNotAllowed, UsageError
from cairn.identity import NodeName, Role
from cairn.v1 import round_pb2 as pb

log = structlog.get_logger()


class Roster:
    """The owners on the roster now. Every method may be called from any thread."""

    def __init__(self, path: Path, read: Callable[[Path], Collection[str]]) -> None:
        """Read the roster; `read` raises UsageError for a file that cannot be used."""
        self._path = path
        self._read = read
        self._lock = threading.Lock()
        self._seen = _state_of(path)
        self._owners = frozenset(read(path))

    def check(self, node: NodeName) -> None:
        """Raise CallerNotAllowed for an owner that is not on the roster."""
        if node.role is Role.OWNER and node.name not in self.owners():
            raise CallerNotAllowed(
                f"{node} is not on the roster: the aggregator's file does not list it under owners",
                pb.REASON_UNKNOWN_OWNER,
            )

    def owners(self) -> frozenset[str]:
        """The roster as the file has it now; as it was, where the file cannot be used."""
        with self._lock:
            state = _state_of(self._path)
            if state != self._seen:
                self._seen = state
                self._take()
            return self._owners

    def _take(self) -> None:
        try:
            owners = frozenset(self._read(self._path))
        except UsageError as error:
            log.error("the changed file cannot be used, the roster stays", reason=str(error))
            return
        for name in sorted(self._owners - owners):
            log.warning("owner removed from the roster", owner=name)
        for name in sorted(owners - self._owners):
            log.info("owner added to the roster", owner=name)
        self._owners = owners


def _state_of(path: Path) -> tuple[int, int, int] | None:
    """What changes with the file's content; None where it cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
