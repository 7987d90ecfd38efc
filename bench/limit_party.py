"""One process of the limit: it passes on the bytes of a round, over TCP or over TLS."""

import signal
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from bench.streams import Stream, TcpStream, TlsStream, tls_context

KINDS = ("tcp", "tls")
Sockets = dict[str, list[socket.socket]]  # of each kind


@dataclass(frozen=True)
class Party:
    """Whom a process receives `size` bytes from and sends as many to; the coordinator sends first."""

    sends_first: bool
    incoming: Sockets
    outgoing: Sockets
    size: int
    identity: Path  # the directory of its certificate, its key and its authority


def run_party(party: Party, control: Connection) -> None:
    """Pass on the bytes each time a kind comes from `control`, and answer with the seconds it took."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    # Where a neighbour has gone, so does this one; whoever started it notices by the pipe.
    with suppress(ConnectionError):
        _pass_on(party, control)


def _pass_on(party: Party, control: Connection) -> None:
    count = sum(map(len, [*party.incoming.values(), *party.outgoing.values()]))
    # One memory for what is sent, which all receive; one each for what arrives, as nodes have it.
    most = max(len(connections) for connections in party.incoming.values())
    arrived = [memoryview(bytearray(party.size)) for _ in range(most)]
    sent = arrived[0] if arrived else memoryview(bytearray(party.size))
    with ThreadPoolExecutor(max_workers=count) as threads:
        incoming, outgoing = _streams(party, threads)
        control.send("ready")
        while kind := control.recv():
            begun = time.perf_counter()
            stages = [
                [partial(s.receive, into) for s, into in zip(incoming[kind], arrived, strict=True)],
                [partial(s.send, sent) for s in outgoing[kind]],
            ]
            for stage in reversed(stages) if party.sends_first else stages:
                for future in [threads.submit(passage) for passage in stage]:
                    future.result()
            control.send(time.perf_counter() - begun)


def _streams(
    party: Party, threads: ThreadPoolExecutor
) -> tuple[dict[str, Sequence[Stream]], dict[str, Sequence[Stream]]]:
    """Wrap the sockets. All hands are shaken at once: nobody waits for a third one."""
    files = [party.identity / name for name in ("node.crt", "node.key", "authority.crt")]

    def wrap(connection: socket.socket, *, accepts: bool) -> TlsStream:
        return TlsStream(connection, tls_context(*files, accepts=accepts), accepts=accepts)

    arriving = [threads.submit(wrap, each, accepts=True) for each in party.incoming["tls"]]
    leaving = [threads.submit(wrap, each, accepts=False) for each in party.outgoing["tls"]]
    incoming: dict[str, Sequence[Stream]] = {
        "tcp": [TcpStream(each) for each in party.incoming["tcp"]],
        "tls": [future.result() for future in arriving],
    }
    outgoing: dict[str, Sequence[Stream]] = {
        "tcp": [TcpStream(each) for each in party.outgoing["tcp"]],
        "tls": [future.result() for future in leaving],
    }
    return incoming, outgoing
