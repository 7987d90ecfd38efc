"""Federations whose coordinator writes down all that it receives, and waits before it ends."""

import base64
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.scenarios.federation import Federation
from tests.scenarios.processes import Node, until

_RECORDER = Path(__file__).with_name("recorder.py")


@dataclass(frozen=True)
class Received:
    """One message, or the metadata or status of a call."""

    sender: str
    kind: str
    value: bytes


class RecordedFederation(Federation):
    """A federation with a task of the test's own, which gets {data}/{owner} as the halving one does."""

    def __init__(self, home: Path, values: Mapping[str, float], task: str) -> None:
        super().__init__(home, values, floor=3)
        self.record = home / "record"
        self.record.mkdir()
        (home / "task.py").write_text(task)

    def coordinator(self, **job: Any) -> Node:
        os.mkfifo(self.record / "end")
        return super().coordinator(**job)

    def job_ends(self, coordinator: Node) -> None:
        """Wait until the coordinator would exit, with the code 0."""
        path = self.record / "exit-code"
        until(lambda: path.exists() or coordinator.process.poll() is not None, "the job ends")
        assert path.exists(), coordinator.output()
        assert path.read_text() == "0", coordinator.output()

    def let_go(self, coordinator: Node) -> None:
        """Let the coordinator exit."""

        def opened() -> int:
            with suppress(OSError):  # as long as nobody reads
                return os.open(self.record / "end", os.O_WRONLY | os.O_NONBLOCK)
            return 0

        os.close(until(opened, "the coordinator ends"))
        assert coordinator.ends() == 0

    def received(self) -> Iterator[Received]:
        for line in (self.record / "received").read_text(encoding="ascii").splitlines():
            entry = json.loads(line)
            yield Received(entry["from"], entry["kind"], base64.b64decode(entry["bytes"]))

    def _start(self, name: str, program: str, *arguments: str) -> Node:
        if program != "coordinator":
            return super()._start(name, program, *arguments)
        log = self.home / f"{name}.log"
        recorder = (sys.executable, str(_RECORDER), str(self.record))
        self.nodes.append(Node(name, log, *recorder, *arguments))
        return self.nodes[-1]
