"""A stream between two processes at the machine's pace: bare TCP, or TLS 1.3 over it.

The bytes of a model leave from memory and arrive in memory.
"""

import socket
import ssl
from pathlib import Path
from typing import Protocol, cast

_BLOCK_BYTES = 1 << 19  # measured: as fast as any, from 64 KiB to 1 MiB
_RECORD_BYTES = 1 << 14  # what TLS hands out at once


class Sender(Protocol):
    """Sends what lies in a memory."""

    def send(self, memory: memoryview) -> None: ...


class Receiver(Protocol):
    """Receives as much as a memory holds into it."""

    def receive(self, memory: memoryview) -> None: ...


class TcpStream:
    """The bytes as they are."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, memory: memoryview) -> None:
        self._connection.sendall(memory)

    def receive(self, memory: memoryview) -> None:
        while memory:
            memory = memory[_received(self._connection, memory) :]


class TlsStream:
    """TLS 1.3. Read from and written to the socket in large blocks.

    A socket of `ssl` reads one record at a time, and many of them in one process wait for each other.
    """

    def __init__(
        self, connection: socket.socket, context: ssl.SSLContext, *, accepts: bool
    ) -> None:
        self._connection = connection
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._arrived, self._leaving, server_side=accepts)
        self._block = memoryview(bytearray(_BLOCK_BYTES))
        self._shake_hands()

    def send(self, memory: memoryview) -> None:
        for begin in range(0, len(memory), _BLOCK_BYTES):
            self._tls.write(memory[begin : begin + _BLOCK_BYTES])
            self._flush()

    def receive(self, memory: memoryview) -> None:
        while memory:
            try:
                # typeshed knows neither other buffers than a bytearray nor that a count is returned.
                record = cast("bytearray", memory[:_RECORD_BYTES])
                memory = memory[cast("int", self._tls.read(len(memory), record)) :]
            except ssl.SSLWantReadError:
                self._fill()

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
        self._flush()

    def _flush(self) -> None:
        if self._leaving.pending:
            self._connection.sendall(self._leaving.read())

    def _fill(self) -> None:
        self._arrived.write(self._block[: _received(self._connection, self._block)])


def tls_context(certificate: Path, key: Path, authority: Path, *, accepts: bool) -> ssl.SSLContext:
    """TLS 1.3 between parties who know each other's authority: both show a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if accepts else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # these are processes of one machine
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority)
    context.load_cert_chain(certificate, key)
    return context


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection over the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        one = socket.create_connection(door.getsockname())
        other, _ = door.accept()
    for end in (one, other):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


def _received(connection: socket.socket, block: memoryview) -> int:
    count = connection.recv_into(block)
    if count == 0:
        raise ConnectionResetError("the other end has gone")
    return count
