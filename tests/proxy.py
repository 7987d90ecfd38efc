"""A TCP proxy on loopback that counts every byte, and can stop or cut; TLS passes through untouched."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

_READ_BYTES = 1 << 16


class Way:
    """What has gone one way, over all connections; `recorded` is empty unless the proxy records."""

    def __init__(self) -> None:
        self.bytes = 0
        self.recorded = bytearray()


class Proxy:
    """Forwards each connection to `target` ("HOST:PORT"), from `address`.

    `sent` is what went from the dialling to the listening side, `received` what came back.
    """

    def __init__(self, target: str, *, record: bool = False) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._record = record
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._cut_after: int | None = None
        self._open: set[socket.socket] = set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"localhost:{self._listening.getsockname()[1]}"
        self.sent = Way()
        self.received = Way()
        self.connections = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listening.close()
        self._flows.set()
        self._end()

    def stall(self) -> None:
        """Forward nothing any more, and leave the connections open."""
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    def redirect(self, target: str) -> None:
        """End all connections, and forward those to come to another target."""
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._end()

    def cut(self, after_bytes: int = 0) -> None:
        """End all connections, and those to come, once so many bytes in all have been sent."""
        with self._lock:
            self._cut_after = after_bytes
            due = self.sent.bytes >= after_bytes
        if due:
            self._end()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return  # closed
            try:
                far = socket.create_connection(self._target, 10)
            except OSError:
                near.close()  # nobody listens at the target now
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
                self.connections += 1
            for source, sink, way in ((near, far, self.sent), (far, near, self.received)):
                threading.Thread(target=self._pump, args=(source, sink, way), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
        with suppress(OSError):
            while data := source.recv(_READ_BYTES):
                self._flows.wait()
                allowed = self._counted(data, way)
                sink.sendall(data[:allowed])
                if allowed < len(data):
                    break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        with self._lock:
            self._open -= {source, sink}

    def _counted(self, data: bytes, way: Way) -> int:
        """Count the bytes that may pass; returns how many."""
        with self._lock:
            allowed = len(data)
            if way is self.sent and self._cut_after is not None:
                allowed = max(0, min(allowed, self._cut_after - way.bytes))
            way.bytes += allowed
            if self._record:
                way.recorded += data[:allowed]
            return allowed

    def _end(self) -> None:
        with self._lock:
            ends = list(self._open)
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
