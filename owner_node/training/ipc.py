"""What an owner's process and its training process share: the messages, and the memory of a model.

Messages are lines of JSON over a UNIX socket. Tensors are never in them: both processes map one
memory file. Its first half is the base. Its second half is the update, unless that takes the base's place:
then nobody writes to the second half, and it takes no memory. Kept tensors have a file of their own, in which what
a training makes of them takes their place.
"""

import fcntl
import json
import mmap
import os
import socket
import tempfile
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cairn.model.exchanged import Exchanged
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.statistics import Column, Statistics

_READ_BYTES = 1 << 16


class Link:
    """One end of the socket. Sending and receiving may happen in different threads."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._received = bytearray()
        self._descriptors: deque[int] = deque()

    def send(self, message: Mapping[str, Any], descriptor: int | None = None) -> None:
        """Send a message, and with it a file descriptor. Raises OSError where nobody listens."""
        line = json.dumps(message).encode() + b"\n"
        sent = 0
        if descriptor is not None:
            sent = socket.send_fds(self._socket, [line], [descriptor])
        self._socket.sendall(line[sent:])

    def receive(self) -> dict[str, Any] | None:
        """Wait for a message; None where the other process is gone."""
        while True:
            line, newline, rest = self._received.partition(b"\n")
            if newline:
                self._received = rest
                message: dict[str, Any] = json.loads(line)
                return message
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, _READ_BYTES, 1)
            except ConnectionError:
                return None
            if not data:
                return None
            self._received += data
            self._descriptors.extend(descriptors)

    def received_descriptor(self) -> int:
        """The file descriptor that came with the last message that carried one."""
        return self._descriptors.popleft()

    def close(self) -> None:
        self._socket.close()


class ModelMemory:
    """The base and the update of one schema, in a file that only the holders of it can reach.

    Of kept tensors the base alone is used.
    """

    def __init__(self, schema: Schema, descriptor: int) -> None:
        self.schema = schema
        self.descriptor = descriptor
        total, half = schema.total_bytes, _half_bytes(schema)
        view = memoryview(mmap.mmap(descriptor, 2 * half))
        self.base = view[:total]
        self.update = view[half : half + total]

    @classmethod
    def create(cls, schema: Schema) -> "ModelMemory":
        descriptor = _memory_file()
        os.ftruncate(descriptor, 2 * _half_bytes(schema))
        _seal(descriptor)
        return cls(schema, descriptor)

    def private_base(self) -> NDArray[np.uint8]:
        """The base as it is now, whose pages become this process's own where they are written to."""
        mapped = mmap.mmap(self.descriptor, 2 * _half_bytes(self.schema), access=mmap.ACCESS_COPY)
        return np.frombuffer(mapped, np.uint8, self.schema.total_bytes)

    def close(self) -> None:
        """Close the file. The memory goes with its last view."""
        os.close(self.descriptor)


# Asks what the task's model exchanges; the answer has the keys of `exchanged_message`, or is a failure's.
ASK_FOR_MODEL = {"ask": "model"}


def exchanged_message(exchanged: Exchanged) -> dict[str, Any]:
    kept = {} if exchanged.kept is None else kept_message(exchanged.kept)
    return {
        **schema_message(exchanged.schema),
        **kept,
        "private": sorted(exchanged.private),
        "trained": sorted(exchanged.trained),
        "gives_weights": exchanged.gives_weights,
        "gives_gradients": exchanged.gives_gradients,
        "gives_statistics": exchanged.gives_statistics,
    }


def told_of_model(link: Link, *, again: bool) -> "Exchanged | dict[str, Any]":
    """Wait for the answer to ASK_FOR_MODEL, asked `again` where the last one was a failure: it may be mended.

    Where it is a failure again the message is returned, and an empty one where the process is gone.
    """
    try:
        if again:
            link.send(ASK_FOR_MODEL)
        answer = link.receive() or {}
    except OSError:
        return {}
    if "schema" not in answer:
        return answer
    return Exchanged(
        schema_from(answer),
        frozenset(answer["private"]),
        schema_from(answer, "kept_schema") if "kept_schema" in answer else None,
        frozenset(answer["trained"]),
        gives_weights=answer["gives_weights"],
        gives_gradients=answer["gives_gradients"],
        gives_statistics=answer["gives_statistics"],
    )


def statistics_message(statistics: Statistics | None) -> Any:
    """What is to be counted, in a piece of work; None where nothing is."""
    if statistics is None:
        return None
    return [statistics.min_cell, [[*vars(column).values()] for column in statistics.columns]]


def statistics_from(message: Mapping[str, Any]) -> Statistics | None:
    if message["statistics"] is None:
        return None
    min_cell, columns = message["statistics"]
    return Statistics(tuple(Column(*column) for column in columns), min_cell)


def schema_message(schema: Schema) -> dict[str, Any]:
    return {"schema": _listed(schema)}


def kept_message(schema: Schema) -> dict[str, Any]:
    return {"kept_schema": _listed(schema)}


def schema_from(
    message: Mapping[str, Any], key: Literal["schema", "kept_schema"] = "schema"
) -> Schema:
    return Schema.of(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in message[key])


def _listed(schema: Schema) -> list[Any]:
    return [[spec.name, spec.dtype, spec.shape] for spec in schema.tensors]


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("cairn-model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _seal(descriptor: int) -> None:
    """Keep its size: whoever reads memory that a task has cut off dies of it (SIGBUS)."""
    if hasattr(fcntl, "F_ADD_SEALS"):
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)


def _half_bytes(schema: Schema) -> int:
    """Whole pages, so that the update begins aligned for every type; one at least."""
    return -(-max(schema.total_bytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
