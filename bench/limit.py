"""The machine's limit: the bytes of a round through as many processes, over bare loopback streams.

Coordinator to owners, owners to aggregator, aggregator to coordinator, as in a round. The processes are
started once, and the first passage is not counted. What arrives lies in memory, no digest is made,
nothing is averaged or written: what remains is the wire, as TCP, as TLS 1.3, and as TLS under gRPC-Python.
"""

import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.failure import BenchFailed
from bench.limit_party import KINDS, SOCKET_KINDS, Party, Sockets, run_party
from bench.streams import connected_pair
from bench.work import Work
from cairn.runtime.supervisor import free_ports

_PATIENCE_SECONDS = 600
_COORDINATOR, _AGGREGATOR = "coordinator", "aggregator"


class LimitSeconds:
    """What each passage took, of each kind."""

    def __init__(self) -> None:
        self._each: dict[str, list[float]] = {kind: [] for kind in KINDS}

    def add(self, kind: str, seconds: float) -> None:
        self._each[kind].append(seconds)

    def of(self, kind: str) -> float:
        """The median of this kind."""
        return statistics.median(self._each[kind])


def measure_limit(work: Work, seconds: LimitSeconds, times: int) -> None:
    """Let the bytes of a round pass so many times in each kind, and once before that is not counted.

    The processes end with that: beside those of a federation, a large model would not fit.
    """
    with _started_limit(work) as limit:
        for _ in range(times):
            for kind in KINDS:
                seconds.add(kind, limit.passage(kind))


class _Limit:
    """The processes of the limit."""

    def __init__(self) -> None:
        self.parties: list[tuple[BaseProcess, Connection]] = []

    def passage(self, kind: str) -> float:
        """Let the bytes pass; returns the coordinator's seconds, from its first byte to its last."""
        for _, control in reversed(self.parties):  # the coordinator, which begins, is told last
            control.send(kind)
        answers: list[float] = [self._answer(control) for _, control in self.parties]
        return max(answers)

    def start(self, links: "_Links", work: Work, identity: Path) -> None:
        """Start a process for every party of the links, the coordinator first."""
        context = multiprocessing.get_context("spawn")
        for name in (_COORDINATOR, _AGGREGATOR, *work.names):
            sends_first = name == _COORDINATOR
            party = Party(
                sends_first,
                links.incoming[name],
                links.outgoing[name],
                links.doors[name],
                tuple(links.doors[other] for other in links.receivers[name]),
                work.model_bytes,
                identity,
            )
            ours, theirs = context.Pipe()
            process = context.Process(target=run_party, args=(party, theirs), daemon=True)
            process.start()
            self.parties.append((process, ours))
            theirs.close()
        links.close()
        for _, control in self.parties:
            self._answer(control)

    def stop(self) -> None:
        for process, _ in self.parties:
            process.terminate()
        for process, control in self.parties:
            process.join()
            control.close()

    def _answer(self, control: Connection) -> Any:
        try:
            if control.poll(_PATIENCE_SECONDS):
                return control.recv()
        except EOFError:
            pass
        raise BenchFailed("a process that measures the machine's limit ended, or went silent")


class _Links:
    """The connections between the parties, in each kind."""

    def __init__(self, work: Work) -> None:
        names = (_COORDINATOR, _AGGREGATOR, *work.names)
        self.incoming: dict[str, Sockets] = {n: {kind: [] for kind in SOCKET_KINDS} for n in names}
        self.outgoing: dict[str, Sockets] = {n: {kind: [] for kind in SOCKET_KINDS} for n in names}
        self.doors = dict(zip(names, free_ports(len(names)), strict=True))
        self.receivers: dict[str, list[str]] = {name: [] for name in names}
        for owner in work.names:
            self._link(_COORDINATOR, owner)
            self._link(owner, _AGGREGATOR)
        self._link(_AGGREGATOR, _COORDINATOR)

    def _link(self, sender: str, receiver: str) -> None:
        self.receivers[sender].append(receiver)
        for kind in SOCKET_KINDS:
            one, other = connected_pair()
            self.outgoing[sender][kind].append(one)
            self.incoming[receiver][kind].append(other)

    def close(self) -> None:
        """Close this process's own copies."""
        for side in (*self.incoming.values(), *self.outgoing.values()):
            for sockets in side.values():
                for each in sockets:
                    each.close()


@contextmanager
def _started_limit(work: Work) -> Iterator[_Limit]:
    """Start the processes and let the bytes pass once, not counted; ends them."""
    limit = _Limit()
    with tempfile.TemporaryDirectory(prefix="bench-limit-") as directory:
        try:
            limit.start(_Links(work), work, _throw_away_identity(Path(directory)))
            for kind in KINDS:
                limit.passage(kind)
            yield limit
        finally:
            limit.stop()


def _throw_away_identity(directory: Path) -> Path:
    """Make a certificate for all parties; returns its directory."""
    from datetime import UTC, datetime

    from cairn.identity.authority import Subject, issue, new_authority, new_key, new_request
    from cairn.identity.names import NodeName, Role

    now = datetime.now(UTC)
    authority, key = new_authority("bench", now), new_key()
    subject = Subject(NodeName("bench", Role.AGGREGATOR, "aggregator"))
    certificate = issue(authority, new_request(subject, key), subject, now)
    (directory / "node.key").write_bytes(key)
    (directory / "node.crt").write_bytes(certificate)
    (directory / "authority.crt").write_bytes(authority.certificate)
    return directory
