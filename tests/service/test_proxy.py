"""The proxy that other tests measure with: it counts truly, stalls and cuts."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from cairn.transport.channel import dial
from tests.proxy import Proxy
from tests.scenarios.processes import until
from tests.service.door import AGGREGATOR, ALICE, Calls, Door, Ward
from tests.service.network import refused


@pytest.fixture
def echo() -> Iterator[str]:
    """Answers each connection with what it sends, twice."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(data + data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=listening.accept()[:1], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


def connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), 10)


def test_every_byte_is_counted_and_recorded_each_way(echo: str) -> None:
    with Proxy(echo, record=True) as proxy, connected(proxy.address) as connection:
        connection.sendall(b"stone" * 1000)
        received = b""
        while len(received) < 10_000:
            received += connection.recv(1 << 16)
        assert (proxy.sent.bytes, proxy.received.bytes) == (5_000, 10_000)
        assert (
            hashlib.sha256(proxy.sent.recorded).digest() == hashlib.sha256(b"stone" * 1000).digest()
        )
        assert proxy.received.recorded == received
        assert proxy.connections == 1


def test_a_cut_lets_exactly_so_many_bytes_through(echo: str) -> None:
    with Proxy(echo) as proxy, connected(proxy.address) as connection:
        proxy.cut(after_bytes=3_000)
        with suppress(OSError):
            connection.sendall(b"x" * 5_000)
            while connection.recv(1 << 16):
                pass
        assert proxy.sent.bytes == 3_000


def test_a_stalled_proxy_forwards_nothing_and_keeps_the_connection(echo: str) -> None:
    with Proxy(echo) as proxy, connected(proxy.address) as connection:
        proxy.stall()
        connection.sendall(b"x")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert proxy.sent.bytes == 0
        proxy.resume()
        connection.settimeout(10)
        assert connection.recv(1) == b"x"


def test_mutual_tls_passes_through(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    with Door(ward.home(AGGREGATOR)) as door, Proxy(door.address) as proxy:
        calls = Calls(dial(proxy.address, ward.home(ALICE).identity()))
        assert calls.join() == 7
        assert door.callers == [ALICE]
        assert min(proxy.sent.bytes, proxy.received.bytes) > 500  # a handshake, at least
        proxy.cut()
        with refused(grpc.StatusCode.UNAVAILABLE):
            calls.join()
        until(lambda: not proxy._open, "every connection has ended")
