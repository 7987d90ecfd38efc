"""One process of the limit: it passes on the bytes of a round, over TCP, over TLS or by gRPC."""

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

from bench.streams import Receiver, Sender, TcpStream, TlsStream, tls_context
from cairn.runtime.malloc import keep_freed_memory

SOCKET_KINDS = ("tcp", "tls")
KINDS = (*SOCKET_KINDS, "grpc")
Sockets = dict[str, list[socket.socket]]  # of each kind that has sockets


@dataclass(frozen=True)
class Party:
    """Whom a process receives `size` bytes from and sends as many to; the coordinator sends first."""

    sends_first: bool
    incoming: Sockets
    outgoing: Sockets
    door: int  # the port at which it takes in what comes by gRPC
    doors: tuple[int, ...]  # the ports of those it sends to
    size: int
    identity: Path  # the directory of its certificate, its key and its authority


def run_party(party: Party, control: Connection) -> None:
    """Pass on the bytes each time a kind comes from `control`, and answer with the seconds it took."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    keep_freed_memory()  # as Cairn's nodes do
    # Where a neighbour has gone, so does this one; whoever started it notices by the pipe.
    with suppress(ConnectionError):
        _pass_on(party, control)


def _pass_on(party: Party, control: Connection) -> None:
    count = sum(map(len, [*party.incoming.values(), *party.outgoing.values()])) + len(party.doors)
    # One memory for what is sent, which all receive; one each for what arrives, as nodes have it.
    arrived = [memoryview(bytearray(party.size)) for _ in party.incoming["tcp"]]
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
) -> tuple[dict[str, Sequence[Receiver]], dict[str, Sequence[Sender]]]:
    """Wrap the sockets. All hands are shaken at once: nobody waits for a third one."""
    from bench.bare_grpc import Call, Door  # after the allocator has its settings

    files = [party.identity / name for name in ("node.crt", "node.key", "authority.crt")]

    def wrap(connection: socket.socket, *, accepts: bool) -> TlsStream:
        return TlsStream(connection, tls_context(*files, accepts=accepts), accepts=accepts)

    arriving = [threads.submit(wrap, each, accepts=True) for each in party.incoming["tls"]]
    leaving = [threads.submit(wrap, each, accepts=False) for each in party.outgoing["tls"]]
    callers = len(party.incoming["tcp"])
    incoming: dict[str, Sequence[Receiver]] = {
        "tcp": [TcpStream(each) for each in party.incoming["tcp"]],
        "tls": [future.result() for future in arriving],
        "grpc": [Door(party.door, party.identity, callers)] * callers,
    }
    outgoing: dict[str, Sequence[Sender]] = {
        "tcp": [TcpStream(each) for each in party.outgoing["tcp"]],
        "tls": [future.result() for future in leaving],
        "grpc": [Call(port, party.identity) for port in party.doors],
    }
    return incoming, outgoing
