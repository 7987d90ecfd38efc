"""Whose connections a port has, so that nobody can hold them all.

gRPC takes connections up to a limit before it knows whose they are, and lets whoever calls now and then keep
one, also where every call is refused. So half of a port's connections are for callers that are admitted:
while more than half are taken, those without an admitted call in the last second are shut down. One caller
has a few at a time.
"""

import os
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote

import structlog

from cairn.address import Address
from cairn.errors import LimitExceeded, UsageError
from cairn.identity.names import NodeName
from cairn.runtime.clock import Clock

CONNECTIONS_OF_ONE_CALLER = 8
_LOOK_EVERY_SECONDS = 0.2
_QUIET_PAUSE_SECONDS = 1.0  # a connection without an admitted call for so long may be shut down
_OWN_FILES = "/dev/fd"

log = structlog.get_logger()


@dataclass
class _Use:
    """What one connection is used for."""

    calls: int
    last: float


class Connections:
    """The connections of one port that have admitted calls. Every method may be called from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._uses: dict[NodeName, dict[str, _Use]] = defaultdict(dict)

    def enter(self, node: NodeName, peer: str) -> None:
        """The node calls over this connection. Raises LimitExceeded where it has too many others.

        `peer` is the other end as gRPC writes it, as "ipv4:192.0.2.1:40000".
        """
        now = self._clock.monotonic()
        with self._lock:
            uses = self._uses[node]
            for quiet in [other for other, use in uses.items() if _is_quiet(use, now)]:
                del uses[quiet]
            if peer not in uses and len(uses) >= CONNECTIONS_OF_ONE_CALLER:
                raise LimitExceeded(f"{node} has {CONNECTIONS_OF_ONE_CALLER} connections already")
            use = uses.setdefault(peer, _Use(0, now))
            use.calls, use.last = use.calls + 1, now

    def leave(self, node: NodeName, peer: str) -> None:
        """A call has ended."""
        with self._lock:
            use = self._uses[node][peer]
            use.calls, use.last = use.calls - 1, self._clock.monotonic()

    def in_use(self) -> set[tuple[str, int]]:
        """The other ends of the connections that have an admitted call, or had one a moment ago."""
        now = self._clock.monotonic()
        with self._lock:
            for node, uses in list(self._uses.items()):
                if all(_is_quiet(use, now) for use in uses.values()):
                    del self._uses[node]
            peers = [
                peer
                for uses in self._uses.values()
                for peer, use in uses.items()
                if not _is_quiet(use, now)
            ]
        return {_other_end(peer) for peer in peers}


class Reserve:
    """Keeps half of a port's connections free for admitted callers."""

    def __init__(self, connections: Connections, most: int, clock: Clock) -> None:
        """Of the port's connections, of which there may be `most`."""
        self._connections = connections
        self._most = most // 2
        self._clock = clock
        self._since: dict[tuple[str, int], float] = {}
        self._stopped = threading.Event()

    def start(self, port: int) -> None:
        """Watch over the connections to this port of ours."""
        watch = threading.Thread(target=self._run, args=(port,), name="reserve", daemon=True)
        watch.start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self, port: int) -> None:
        while not self._stopped.wait(_LOOK_EVERY_SECONDS):
            with suppress(OSError):  # no file is left to look with: there may be one next time
                if len(_own_files()) > self._most:
                    self._look(port)

    def _look(self, port: int) -> None:
        now = self._clock.monotonic()
        found = dict(_connected_to(port))
        self._since = {end: self._since.get(end, now) for end in found}
        if len(found) <= self._most:
            return
        in_use = self._connections.in_use()
        idle = [
            end
            for end, since in self._since.items()
            if end not in in_use and now - since > _QUIET_PAUSE_SECONDS
        ]
        for end in idle:
            _shut_down(found[end], end)
        if idle:
            log.warning(
                "connections without an admitted call were shut down", connections=len(idle)
            )


def _is_quiet(use: _Use, now: float) -> bool:
    return use.calls == 0 and now - use.last > _QUIET_PAUSE_SECONDS


def _connected_to(port: int) -> Iterator[tuple[tuple[str, int], int]]:
    """The connections of this process to a port of its own: their other ends, and their descriptors."""
    for descriptor in _own_files():
        with suppress(OSError):  # no socket, not connected, or closed by now
            ours, other = _ends(descriptor)
            if ours[1] == port:
                yield other, descriptor


def _own_files() -> list[int]:
    with os.scandir(_OWN_FILES) as entries:
        return [int(entry.name) for entry in entries]


def _shut_down(descriptor: int, end: tuple[str, int]) -> None:
    """End the connection, which gRPC finds out and closes. Nothing is done where it is another by now."""
    with suppress(OSError), _held(descriptor) as connection:
        if _ends_of(connection)[1] == end:
            connection.shutdown(socket.SHUT_RDWR)


def _ends(descriptor: int) -> tuple[tuple[str, int], tuple[str, int]]:
    """The two ends of a connection. Raises OSError for what is none."""
    with _held(descriptor) as connection:
        return _ends_of(connection)


def _held(descriptor: int) -> socket.socket:
    """What the descriptor stands for, under another of our own. Raises OSError for what is no socket.

    gRPC closes its descriptors in threads of its own, and the next that is opened has the same number: what was
    looked at by one would be shut down as another.
    """
    own = os.dup(descriptor)
    try:
        return socket.socket(fileno=own)
    except OSError:
        os.close(own)
        raise


def _ends_of(connection: socket.socket) -> tuple[tuple[str, int], tuple[str, int]]:
    if connection.family not in {socket.AF_INET, socket.AF_INET6}:
        raise OSError("no connection over IP")
    ours, other = connection.getsockname(), connection.getpeername()
    return (_plain(ours[0]), ours[1]), (_plain(other[0]), other[1])


def _other_end(peer: str) -> tuple[str, int]:
    """The address and the port; of a connection that is gone gRPC may say neither."""
    try:
        end = Address.parse(unquote(peer.partition(":")[2]))
    except UsageError:
        return "", 0
    return _plain(end.host), end.port


def _plain(host: str) -> str:
    """The address without a zone, and one of IPv4 as such."""
    return host.partition("%")[0].removeprefix("::ffff:")
