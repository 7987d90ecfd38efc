"""The bytes of a round through gRPC-Python and nothing else: mutual TLS, chunks as Cairn has them.

What this takes beyond bare TLS is gRPC's own; what a round takes beyond this is Cairn's.
"""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np

_CHUNK_BYTES = 1 << 20
_METHOD = "/bench/Take"
_TAG = b"-"  # Cairn has as little before each chunk
_SECONDS = 600


class Door:
    """Where one party takes in what others send: each call fills one of the memories that wait."""

    def __init__(self, port: int, identity: Path, callers: int) -> None:
        self._waiting: queue.SimpleQueue[tuple[memoryview, threading.Event]] = queue.SimpleQueue()
        handler: Any = grpc.stream_unary_rpc_method_handler(self._take)
        service, method = _METHOD.lstrip("/").split("/")
        self._server = grpc.server(
            ThreadPoolExecutor(callers),
            [grpc.method_handlers_generic_handler(service, {method: handler})],
            options=[("grpc.max_receive_message_length", -1)],
        )
        key, certificate, authority = _files(identity)
        credentials = grpc.ssl_server_credentials([(key, certificate)], authority, True)
        self._server.add_secure_port(f"localhost:{port}", credentials)
        self._server.start()

    def receive(self, memory: memoryview) -> None:
        """Wait until somebody's bytes have filled the memory."""
        filled = threading.Event()
        self._waiting.put((memory, filled))
        if not filled.wait(_SECONDS):
            raise ConnectionResetError("nobody sent anything")

    def _take(self, chunks: Iterator[bytes], _: grpc.ServicerContext) -> bytes:
        memory, filled = self._waiting.get(timeout=_SECONDS)
        into, offset = np.frombuffer(memory, np.uint8), 0
        for chunk in chunks:
            end = offset + len(chunk) - len(_TAG)
            into[offset:end] = np.frombuffer(chunk, np.uint8)[len(_TAG) :]
            offset = end
        filled.set()
        return b""


class Call:
    """Sends to the door of another party."""

    def __init__(self, port: int, identity: Path) -> None:
        key, certificate, authority = _files(identity)
        credentials = grpc.ssl_channel_credentials(authority, key, certificate)
        self._channel = grpc.secure_channel(f"localhost:{port}", credentials)
        self._method: Any = self._channel.stream_unary(_METHOD)

    def send(self, memory: memoryview) -> None:
        begins = range(0, len(memory), _CHUNK_BYTES)
        chunks = (b"".join((_TAG, memory[begin : begin + _CHUNK_BYTES])) for begin in begins)
        self._method(chunks, wait_for_ready=True, timeout=_SECONDS)


def _files(identity: Path) -> tuple[bytes, bytes, bytes]:
    names = ("node.key", "node.crt", "authority.crt")
    key, certificate, authority = ((identity / name).read_bytes() for name in names)
    return key, certificate, authority
