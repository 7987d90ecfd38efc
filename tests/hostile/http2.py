"""HTTP/2 by hand over mutual TLS: frames that no gRPC library sends (RFC 9113, RFC 7541).

It acknowledges settings and pings, so that a connection counts as alive, and grants no window that a test
does not ask for.
"""

import selectors
import socket
import ssl
import struct
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from tests.service.network import Credentials

STREAMS = 16  # that a node allows on one connection
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
_INITIAL_WINDOW_SIZE = 0x4
_FRAME_HEADER = 9
_CONNECT_SECONDS = 20.0


def trust(root: bytes, credentials: Credentials) -> ssl.SSLContext:
    """The TLS of a node with this key and certificate, which speaks HTTP/2."""
    with TemporaryDirectory() as folder:
        key, certificate = Path(folder, "key"), Path(folder, "crt")
        key.write_bytes(credentials[0])
        certificate.write_bytes(credentials[1])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=root.decode())
        context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    return context


class Connection:
    """One connection. Its streams are numbered by the order in which they are opened, from 0."""

    def __init__(self, address: str, tls: ssl.SSLContext, window: int = 65_535) -> None:
        """Connect; of each answer the server may send `window` bytes."""
        host, _, port = address.rpartition(":")
        raw = socket.create_connection((host, int(port)), _CONNECT_SECONDS)
        self.socket = tls.wrap_socket(raw, server_hostname=host)
        self.opened = 0
        self.reset: set[int] = set()  # the streams that the server has ended without an answer
        self.answered: set[int] = set()  # the streams that have brought headers
        self.closed = False  # by the server
        self._incoming = bytearray()
        self._lock = threading.Lock()  # OpenSSL's connections are for one thread at a time
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)
        self._sent(_PREFACE + _frame(_SETTINGS, 0, 0, settings))

    def call(self, method: str, body: bytes | None, seconds: int = 600) -> None:
        """Begin a call; without a body its headers are all that comes."""
        stream = 2 * self.opened + 1
        self.opened += 1
        fields = {
            ":method": "POST",
            ":scheme": "https",
            ":path": method,
            ":authority": "localhost",
            "content-type": "application/grpc",
            "te": "trailers",
            "grpc-timeout": f"{seconds}S",
        }
        frames = _frame(_HEADERS, _END_HEADERS, stream, b"".join(map(_literal, fields.items())))
        if body is not None:
            message = b"\0" + struct.pack(">I", len(body)) + body
            frames += _frame(_DATA, _END_STREAM, stream, message)
        self._sent(frames)

    def ping(self, count: int) -> None:
        """Send so many pings at once, as far as the server takes them; read no answer."""
        self._sent(_frame(_PING, 0, 0, bytes(8)) * count)

    def take_in(self) -> None:
        """Read what has come, and acknowledge what must be."""
        try:
            while piece := self._received():
                self._incoming += piece
            self.closed = True
        except (ssl.SSLWantReadError, BlockingIOError):
            pass
        except OSError:
            self.closed = True
        while (frame := self._next_frame()) is not None:
            self._heed(*frame)

    def _heed(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        number = (stream - 1) // 2
        if kind in {_SETTINGS, _PING} and not flags & _ACK:
            self._sent(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind == _RST_STREAM:
            self.reset.add(number)
        elif kind == _HEADERS:
            self.answered.add(number)

    def _next_frame(self) -> tuple[int, int, int, bytes] | None:
        if len(self._incoming) < _FRAME_HEADER:
            return None
        length = int.from_bytes(self._incoming[:3], "big")
        if len(self._incoming) < _FRAME_HEADER + length:
            return None
        kind, flags, stream = struct.unpack(">BBI", self._incoming[3:_FRAME_HEADER])
        payload = bytes(self._incoming[_FRAME_HEADER : _FRAME_HEADER + length])
        del self._incoming[: _FRAME_HEADER + length]
        return kind, flags, stream, payload

    def _received(self) -> bytes:
        with self._lock:
            return self.socket.recv(1 << 16)

    def _sent(self, frames: bytes) -> None:
        with suppress(OSError), self._lock:  # the server may have closed it
            self.socket.sendall(frames)


class Crowd:
    """Many connections, kept alive by one thread until the end."""

    def __init__(self) -> None:
        self._all: list[Connection] = []
        self._selector = selectors.DefaultSelector()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._pump, name="crowd", daemon=True)

    def connect(
        self, count: int, address: str, tls: ssl.SSLContext, **how: int
    ) -> list[Connection]:
        """So many more connections; fewer where the server takes no more."""
        made = []
        for _ in range(count):
            with suppress(OSError):
                made.append(Connection(address, tls, **how))
        return made

    def keep(self, connections: list[Connection]) -> None:
        """Read from these, from now on: what is sent on them must have been sent."""
        for connection in connections:
            connection.socket.setblocking(False)
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self._all += connections

    def counts(self) -> Counter[str]:
        """How many streams are answered, how many have ended, and how many connections are closed."""
        counts: Counter[str] = Counter()
        for connection in self._all:
            counts["answered"] += len(connection.answered)
            ended = len(connection.answered | connection.reset)
            counts["ended"] += connection.opened if connection.closed else ended
            counts["closed"] += connection.closed
        return counts

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()
        for connection in self._all:
            connection.socket.close()

    def _pump(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.1):
                key.data.take_in()
                if key.data.closed:
                    self._selector.unregister(key.fileobj)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(field: tuple[str, str]) -> bytes:
    """A header field that is neither indexed nor Huffman-coded."""
    return b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in field)
