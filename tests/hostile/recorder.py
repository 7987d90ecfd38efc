"""Runs a coordinator that writes down all it receives, and waits before it ends: `recorder.py FOLDER ARGUMENTS`.

The bytes are taken below our own code, where gRPC hands over each message, and each call's metadata and
status. `FOLDER/received` gets one line of JSON for each: whom it is from, what it is, its bytes. At its end the
process reads the FIFO `FOLDER/end`, so that a test can look at its memory first.
"""

import base64
import json
import os
import sys
import threading
from collections.abc import Callable
from inspect import getclosurevars, isfunction
from pathlib import Path
from typing import Any

from grpc import _channel, _common, _server

from coordinator.cli import main


class Recorder:
    """Appends to one file, from any thread."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="ascii")
        self._lock = threading.Lock()

    def record(self, sender: str, kind: str, value: bytes) -> None:
        line = {"from": sender, "kind": kind, "bytes": base64.b64encode(value).decode()}
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def messages(self, deserialize: Callable[..., Any], sender: str) -> Callable[..., Any]:
        """`deserialize` of gRPC, which also records what it is given."""

        def recorded(message: bytes, parse: Any) -> Any:
            # What arrives is parsed behind the guard of our own code, so gRPC is given no parser for it.
            kind = kind_of(parse) if parse is not None else "request"
            self.record(sender, kind, message)
            return deserialize(message, parse)

        return recorded

    def answers(self, handle: Callable[..., Any]) -> Callable[..., Any]:
        """What gRPC does with an event of a call that this node makes."""

        def recorded(event: Any, *rest: Any) -> Any:
            for part in event.batch_operations:
                for what in ("initial_metadata", "trailing_metadata", "details"):
                    value: object = getattr(part, what, tuple)()
                    if value:
                        self.record("aggregator", what, repr(value).encode())
            return handle(event, *rest)

        return recorded

    def calls(self, handle: Callable[..., Any]) -> Callable[..., Any]:
        """What gRPC does with a call that arrives."""

        def recorded(event: Any, method: Any, *rest: Any) -> Any:
            if event.success:  # at the end of a server come events without a call
                name = method.name() or event.call_details.method.decode()
                self.record(
                    "owner", f"metadata of {name}", repr(event.invocation_metadata).encode()
                )
            return handle(event, method, *rest)

        return recorded


def kind_of(parse: Any) -> str:
    """The message that a parser makes; `cairn.transport.framing` reads tensors around the generated one."""
    generated = getclosurevars(parse).nonlocals["generated"] if isfunction(parse) else parse
    name: str = generated.__self__.DESCRIPTOR.full_name
    return name


class _Common:
    """gRPC's module `_common`, with another `deserialize`."""

    def __init__(self, deserialize: Callable[..., Any]) -> None:
        self.deserialize = deserialize

    def __getattr__(self, name: str) -> Any:
        return getattr(_common, name)


def record_into(folder: Path) -> None:
    """Record from now on what this process receives, and have it wait when it would end."""
    recorder = Recorder(folder / "received")
    for module, sender in ((_channel, "aggregator"), (_server, "owner")):
        vars(module)["_common"] = _Common(recorder.messages(_common.deserialize, sender))
    _channel._handle_event = recorder.answers(_channel._handle_event)
    _server._handle_call = recorder.calls(_server._handle_call)
    end = os._exit

    def wait_and_end(code: int) -> None:
        (folder / "exit-code").write_text(str(code))
        (folder / "end").read_bytes()
        end(code)

    os._exit = wait_and_end  # type: ignore[assignment]  # it does return to nobody


if __name__ == "__main__":
    record_into(Path(sys.argv.pop(1)))
    main()
