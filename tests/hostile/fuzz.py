"""Sends random bytes and spoilt real messages to every method of an aggregator and a coordinator.

Both are processes, reached over mTLS under several identities. It fails where a method answers INTERNAL or
UNKNOWN, where a process ends, prints a trace or grows by 200 MB, or where afterwards a good round can no
longer be run to its release. `python -m tests.hostile.fuzz --seconds 300 --seed 1`
"""

import argparse
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from cairn.v1 import aggregator_pb2, coordinator_pb2
from tests.hostile.checks import rss_bytes
from tests.hostile.fuzz_stage import Stage, Ward, attacker
from tests.hostile.mutation import mutated, shuffled_stream
from tests.scenarios.processes import Node

FORBIDDEN = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
GROWTH_BYTES = 200_000_000
WORKERS = 3
STAGE_CALLS = 400  # then the rounds and jobs that are named are new ones
CALL_SECONDS = 10.0
WAITING_SECONDS = 0.2  # of a stream that answers nothing for as long as nothing happens
SLOW_SECONDS = 180.0  # beyond its time, until each method was called well once
WAITING = {"Attend", "WatchRound", "Watch"}
METHODS: dict[str, Any] = {
    f"/{service.full_name}/{method.name}": method
    for file in (aggregator_pb2.DESCRIPTOR, coordinator_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}


@dataclass
class Findings:
    """What was answered, how often, and what must not have been."""

    seed: int
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, path: str, code: grpc.StatusCode) -> None:
        with self.lock:
            self.answers[path, code.name] += 1

    def fault(self, text: str) -> None:
        with self.lock:
            self.faults.append(text)

    def table(self) -> str:
        lines = [f"seed {self.seed}: {self.answers.total()} calls"]
        for path in METHODS:
            codes = {code: n for (p, code), n in sorted(self.answers.items()) if p == path}
            lines.append(f"{path}: " + " ".join(f"{code}={n}" for code, n in codes.items()))
        return "\n".join([*lines, *(f"FAULT {fault}" for fault in self.faults)])


class Attack:
    """Fuzzes a ward's nodes from several threads until its time is over or something went wrong."""

    def __init__(self, ward: Ward, seed: int, seconds: float) -> None:
        self.findings = Findings(seed)
        self._ward = ward
        self._ends = time.monotonic() + seconds
        self._stage = Stage(ward, 0)
        self._staging = threading.Lock()
        self._calls = 0

    def run(self) -> Findings:
        watched = [Watched(self._ward.network.node), Watched(self._ward.coordinator)]
        workers = [threading.Thread(target=self._work, args=(n,)) for n in range(WORKERS)]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            for node in watched:
                for fault in node.faults():
                    self.findings.fault(fault)
            if self.findings.faults:
                self._ends = 0.0
            workers[0].join(0.5)
            workers[-1].join(0.1)
        return self.findings

    def _work(self, number: int) -> None:
        random = Random(f"{self.findings.seed}/{number}")
        try:
            while time.monotonic() < self._ends + (0 if self._all_answered() else SLOW_SECONDS):
                self._attack(random, random.choice(list(METHODS)))
        except Exception as error:  # noqa: BLE001 - a thread's failure is a finding, not a lost trace
            self.findings.fault(f"the attacker failed: {error!r}")

    def _all_answered(self) -> bool:
        """Whether every method that anybody may call has taken a message; a slow machine needs longer."""
        answered = {path for path, code in list(self.findings.answers) if code == "OK"}
        return answered >= {path for path in METHODS if not path.endswith("/Watch")}

    def _attack(self, random: Random, path: str) -> None:
        stage = self._current_stage()
        who, address = attacker(random, self._ward, path.split("/")[1])
        messages = list(spoilt(random, path, stage))
        code, details = self._call(path, self._ward.network.channel(who, address), messages)
        self.findings.note(path, code)
        if code in FORBIDDEN:
            sent = ", ".join(message[:300].hex() for message in messages[:4])
            self.findings.fault(f"{path} as {who} at {address}: {code.name} ({details}) for {sent}")

    def _call(self, path: str, channel: Any, messages: list[bytes]) -> tuple[grpc.StatusCode, str]:
        """Send the raw messages, and read up to a few that are answered."""
        method = METHODS[path]
        answers = "stream" if method.server_streaming else "unary"
        streams = method.client_streaming or len(messages) != 1
        call = getattr(channel, f"{'stream' if streams else 'unary'}_{answers}")(path)
        seconds = WAITING_SECONDS if method.name in WAITING else CALL_SECONDS
        try:
            answer = call(iter(messages) if streams else messages[0], timeout=seconds)
            if method.server_streaming:
                for _ in zip(range(3), answer, strict=False):
                    pass
                answer.cancel()
        except grpc.RpcError as error:
            failed: Any = error
            return failed.code(), failed.details()
        return grpc.StatusCode.OK, ""

    def _current_stage(self) -> Stage:
        with self._staging:
            self._calls += 1
            if self._calls % STAGE_CALLS == 0:
                self._stage = Stage(self._ward, self._calls // STAGE_CALLS)
            return self._stage


def spoilt(random: Random, path: str, stage: Stage) -> Iterator[bytes]:
    """What to send to a method: mostly its own messages, spoilt; sometimes good ones, or random bytes."""
    kind = random.random()
    if kind < 0.1:
        for _ in range(random.choice((1, 1, 1, 3)) if METHODS[path].client_streaming else 1):
            yield random.randbytes(random.choice((0, 1, 10, 100, 10_000)))
        return
    good = stage.messages(random, path)
    if kind < 0.2:
        yield from (message.SerializeToString() for message in good)
        return
    target = random.randrange(len(good))  # else nothing but a first message would ever be looked at
    messages = [
        mutated(random, message, stage.seen) if number == target else message.SerializeToString()
        for number, message in enumerate(good)
    ]
    if METHODS[path].client_streaming:
        messages = shuffled_stream(random, messages)
    elif random.random() < 0.02:
        messages *= random.choice((0, 2))
    yield from messages


class Watched:
    """A node's process: alive, without a trace, and not growing."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._read = 0
        self._begun_with = rss_bytes(node.pid)

    def faults(self) -> Iterator[str]:
        if self._node.process.poll() is not None:
            yield f"{self._node.name} ended with {self._node.process.returncode}"
            return
        with self._node.log.open(encoding="utf-8") as log:
            log.seek(self._read)
            said = log.read()
            self._read = log.tell()
        for word in ("Traceback", "handler failed", '"level": "critical"'):
            if word in said:
                begin = said.index(word)
                yield f"{self._node.name} printed {said[max(0, begin - 300) : begin + 2000]}"
        if (grown := rss_bytes(self._node.pid) - self._begun_with) > GROWTH_BYTES:
            yield f"{self._node.name} has grown by {grown} bytes"


def fuzz(directory: Path, seed: int, seconds: float) -> Findings:
    """Start both nodes, attack them, and see whether they still do their work."""
    ward = Ward(directory)
    try:
        ward.run_good_rounds()
        findings = Attack(ward, seed, seconds).run()
        if not findings.faults:
            try:
                ward.run_good_rounds()
                ward.check_end()
            except Exception as error:  # noqa: BLE001 - whatever keeps a good round from its release
                findings.fault(f"no good round afterwards: {error!r}")
    finally:
        ward.close()
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    with tempfile.TemporaryDirectory() as directory:
        findings = fuzz(Path(directory), seed, options.seconds)
    print(findings.table())  # noqa: T201 - a command prints
    sys.exit(1 if findings.faults else 0)


if __name__ == "__main__":
    main()
