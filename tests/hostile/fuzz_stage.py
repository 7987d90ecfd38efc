"""What is fuzzed: an aggregator and a coordinator with a job under way, and good messages that name them."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import grpc
import numpy as np
import torch
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from safetensors.torch import save_file

from cairn.protocol.aggregation import Aggregation
from cairn.protocol.messages import (
    PROTOCOL,
    digest_of,
    job_spec_from_bytes,
    job_spec_to_bytes,
    manifest_from_bytes,
)
from cairn.protocol.statistics import Column, Statistics, schema_of
from cairn.v1 import aggregator_pb2, coordinator_pb2, coordinator_pb2_grpc
from cairn.v1 import round_pb2 as pb
from tests.hostile.checks import ONE_HOT, check_one_hot, one_hot
from tests.hostile.mutation import change_field
from tests.scenarios.processes import Node, until
from tests.service.network import FEDERATION, OWNERS, SECONDS, Job, Network, OpenRound
from tests.warm.start import BIN

T = TypeVar("T")

# The mean, by a rule that measures from the base, which a coordinator so has to bring.
BOUNDING_NOTHING = Aggregation(rule=pb.RULE_NORM_BOUNDED_MEAN, rule_numbers={"norm": 1e30})

# What makes a job one of statistics.
_STATISTICS = Statistics((Column("age", 0, 100, 5), Column("size", -1, 1, 2)), 10)
COUNTS: dict[str, Any] = {
    "statistics": _STATISTICS,
    "schema": schema_of(_STATISTICS),
    "aggregation": Aggregation(pb.CONTENT_STATISTICS, pb.RULE_SUM),
    "rounds": 1,
    "settings": {},
}

PATIENT = 3600  # the coordinator waits for its owners for as long as it is attacked
_JOB = f"""
name = "fuzzed"
task = "task"
model = "initial.safetensors"
rounds = 2
owners = {json.dumps(list(OWNERS))}
floor = 3
gather_seconds = {PATIENT}
[settings]
lr = 0.1
"""


class Ward:
    """An aggregator, and a coordinator whose job has one round before the attack and one after it."""

    def __init__(self, directory: Path) -> None:
        self.network = Network(directory, floor=3, lease_seconds=600)
        self.base_digest = b""
        home = self.network.directory
        save_file({"weight": torch.zeros(len(OWNERS))}, home / "initial.safetensors")
        (home / "job.toml").write_text(_JOB)
        config, job, out = home / "coordinator.toml", home / "job.toml", home / "out"
        command = (BIN / "coordinator", "run", job, "--config", config, "--out", out)
        self.coordinator = Node("coordinator", home / "coordinator.log", *command)
        self._rounds = 0
        self._cohort: tuple[str, ...] = ()

    def run_good_rounds(self) -> None:
        """One of a job of its own, one of the coordinator's: both must end with the right average."""
        cohort = ("alice", "bob", "carol")
        updates = {owner: one_hot(owner) for owner in cohort}
        ended = when_free(lambda: self.network.job(schema=ONE_HOT).run(updates))
        check_one_hot(ended, cohort)
        self._rounds += 1
        with ThreadPoolExecutor(len(OWNERS)) as pool:
            cohorts = set(pool.map(self._take_part, OWNERS)) - {()}
        (self._cohort,) = cohorts

    def check_end(self) -> None:
        """The coordinator's job is completed, and its model is the average of the last round."""
        assert self.coordinator.ends(SECONDS) == 0
        for node in (self.coordinator, self.network.node):
            assert "Traceback" not in node.output()
        model = (self.network.directory / "out/model.safetensors").read_bytes()
        shares = [(owner in self._cohort) / len(self._cohort) for owner in OWNERS]
        assert model.endswith(np.array(shares, "<f4").tobytes())

    def close(self) -> None:
        self.network._hang_up()  # else gRPC prints that its peers are gone
        self.coordinator.kill()
        self.network.node.kill()

    def _take_part(self, owner: str) -> tuple[str, ...]:
        """Attend, train, push: as an owner does, on the generated stubs. Returns the round's cohort.

        It is empty for an owner that came when the round had been opened with three others.
        """
        channel = self.network.channel(owner, self.network.coordinator_at)
        stub: Any = coordinator_pb2_grpc.InvitationServiceStub(channel)
        request = coordinator_pb2.AttendRequest(federation=FEDERATION, protocol=PROTOCOL)
        events = stub.Attend(request, timeout=3 * SECONDS, wait_for_ready=True)
        event = next(events)
        if event.HasField("finished"):
            return ()
        invitation = event.invitation
        manifest = manifest_from_bytes(invitation.manifest.body)
        assert manifest.round == self._rounds
        fetch = coordinator_pb2.FetchModelRequest(digest=manifest.base_digest)
        parts = list(stub.FetchModel(fetch, timeout=SECONDS))
        base = b"".join(part.chunk for part in parts[1:])
        assert ONE_HOT.digest(base) == manifest.base_digest
        self.base_digest = manifest.base_digest
        job = Job.__new__(Job)
        job.network, job.spec = self.network, job_spec_from_bytes(invitation.job_spec)
        opened = OpenRound(job, invitation.manifest)
        opened.join(owner)
        opened.push(owner, one_hot(owner))
        outcome = next(events).outcome
        assert outcome.manifest_digest == digest_of(invitation.manifest.body)
        statement = pb.ReleaseStatement.FromString(outcome.statement.body)
        assert statement.contributors == len(manifest.cohort)
        events.cancel()
        return manifest.cohort


def when_free(call: Callable[[], T]) -> T:
    """Call under an identity whose calls the attack may just have used up: then again."""

    def tried() -> T | None:
        try:
            return call()
        except grpc.RpcError as error:
            failed: Any = error
            if failed.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            return None

    answer = until(tried, "the caller may call again", SECONDS)
    assert answer is not None
    return answer


_MAY_CALL = {
    "cairn.v1.IntakeService": ("alice", "bob", "mallory"),
    "cairn.v1.ReleaseService": ("coordinator", "rival"),
    "cairn.v1.RecordService": ("alice", "bob", "mallory", "coordinator", "rival"),
    # A third owner of the job would make a cohort.
    "cairn.v1.InvitationService": ("alice", "bob", "mallory"),
    "grpc.health.v1.Health": ("alice", "coordinator", "rival"),
}
_ANYBODY = ("bob", "mallory", "coordinator", "rival", "aggregator", "neighbour", "nameless")


def attacker(random: Random, ward: Ward, service: str) -> tuple[str, str]:
    """Who calls, and where: mostly a caller that may, at an address that has the service."""
    network = ward.network
    intake, release, coordinator = network.intake_at, network.release_at, network.coordinator_at
    who = random.choice(_MAY_CALL[service] if random.random() < 0.8 else _ANYBODY)
    if random.random() < 0.05 or service.startswith("grpc"):
        return who, random.choice((intake, release, coordinator))
    if service == "cairn.v1.InvitationService":
        return who, coordinator
    if service == "cairn.v1.IntakeService":
        return who, intake
    if service == "cairn.v1.ReleaseService":
        return who, release
    return who, release if who in {"coordinator", "rival"} else intake


class Stage:
    """A job with a round that is open and one that was released, and good messages that name them."""

    def __init__(self, ward: Ward, number: int) -> None:
        self._ward = ward
        self._number = number
        self._names = 0
        self._job = when_free(self._job_with_a_release)
        self._released = self._last
        self._open = when_free(lambda: self._job.open(OWNERS, self._payload, 2))
        for owner in OWNERS:
            self._head = when_free(partial(self._open.join, owner)).ledger_head
        self.seen = [
            message.SerializeToString()
            for path in _MESSAGES
            for message in self.messages(Random(number), path)
        ]

    def messages(self, random: Random, path: str) -> list[Message]:
        """A good message, or a good stream of them, for this method."""
        return list(_MESSAGES[path](self, random))

    def _job_with_a_release(self) -> Job:
        job = self._ward.network.job(schema=ONE_HOT, deadline=20, aggregation=BOUNDING_NOTHING)
        job.bring(job.first_base)
        self._last = job.open(OWNERS)
        for owner in OWNERS:
            self._last.join(owner)
            self._last.push(owner, one_hot(owner))
        self._payload = self._last.ends().payload
        return job

    def _digest(self, random: Random) -> bytes:
        return random.choice((self._open, self._open, self._released)).digest

    def _join(self, random: Random) -> Iterator[Message]:
        request = aggregator_pb2.JoinRoundRequest(
            manifest_digest=self._digest(random), join=True, protocol=PROTOCOL, software="0.3.0"
        )
        if random.random() < 0.3:
            request.join, request.reason = False, pb.REASON_STOPPING
        if random.random() < 0.5:
            request.seen_head.CopyFrom(self._head)
        yield request

    def _submit(self, random: Random) -> Iterator[Message]:
        opened = random.choice((self._open, self._open, self._released))
        head = {"seen_head": self._head} if random.random() < 0.5 else {}
        yield from opened.parts(one_hot("alice"), metrics={"loss": 0.5, "a": 1.0}, **head)

    def _register(self, random: Random) -> Iterator[Message]:
        self._names += 1
        name = f"fuzz-{self._number}-{self._names}"
        counts = COUNTS if random.random() < 0.3 else {}
        body = job_spec_to_bytes(replace(self._job.spec, name=name, **counts))
        if random.random() < 0.7:
            spec = pb.JobSpec.FromString(body)
            for _ in range(random.choice((1, 1, 2))):
                change_field(random, spec)
            body = spec.SerializeToString()
        yield aggregator_pb2.RegisterJobRequest(
            job_spec=body, protocol=PROTOCOL, software="0.3.0", process=bytes(32)
        )

    def _bring(self, random: Random) -> Iterator[Message]:
        header = aggregator_pb2.SubmitModelHeader(
            job=self._job.spec.name,
            epoch=random.choice((1, 1, 2)),
            digest=ONE_HOT.digest(self._payload),
        )
        yield aggregator_pb2.SubmitModelRequest(header=header)
        yield aggregator_pb2.SubmitModelRequest(chunk=self._payload)

    def _open_round(self, random: Random) -> Iterator[Message]:
        yield aggregator_pb2.OpenRoundRequest(
            job=self._job.spec.name,
            round=random.choice((1, 2, 3)),
            phase=random.choice((pb.PHASE_TRAIN, pb.PHASE_EVALUATE)),
            cohort=OWNERS,
            base_digest=ONE_HOT.digest(self._payload),
            epoch=random.choice((1, 1, 2)),
        )

    def _collect(self, random: Random) -> Iterator[Message]:
        yield aggregator_pb2.CollectReleaseRequest(
            manifest_digest=self._digest(random), offset=random.choice((0, 0, 1, 20, 21)), epoch=1
        )

    def _fetch(self, random: Random) -> Iterator[Message]:
        yield coordinator_pb2.FetchModelRequest(
            digest=self._ward.base_digest, offset=random.choice((0, 1, 20, 21))
        )


def _naming(kind: Callable[..., Message]) -> Callable[[Stage, Random], Iterator[Message]]:
    """Requests that name a manifest and nothing else."""

    def message(stage: Stage, random: Random) -> Iterator[Message]:
        yield kind(manifest_digest=stage._digest(random))

    return message


def _following(kind: Callable[..., Message]) -> Callable[[Stage, Random], Iterator[Message]]:
    """Requests that name a manifest and the epoch of a coordinator."""

    def message(stage: Stage, random: Random) -> Iterator[Message]:
        yield kind(manifest_digest=stage._digest(random), epoch=random.choice((1, 1, 2)))

    return message


def _of(*messages: Message) -> Callable[[Stage, Random], Iterator[Message]]:
    return lambda _stage, random: iter([random.choice(messages)])


_HEALTH = [health_pb2.HealthCheckRequest(service=s) for s in ("", "cairn.v1.IntakeService")]
_MESSAGES: dict[str, Callable[[Stage, Random], Iterator[Message]]] = {
    "/cairn.v1.IntakeService/JoinRound": Stage._join,
    "/cairn.v1.IntakeService/SubmitUpdate": Stage._submit,
    "/cairn.v1.IntakeService/GetReceipt": _naming(aggregator_pb2.GetReceiptRequest),
    "/cairn.v1.ReleaseService/RegisterJob": Stage._register,
    "/cairn.v1.ReleaseService/SubmitModel": Stage._bring,
    "/cairn.v1.ReleaseService/OpenRound": Stage._open_round,
    "/cairn.v1.ReleaseService/WatchRound": _following(aggregator_pb2.WatchRoundRequest),
    "/cairn.v1.ReleaseService/CollectRelease": Stage._collect,
    "/cairn.v1.ReleaseService/AbortRound": _following(aggregator_pb2.AbortRoundRequest),
    "/cairn.v1.RecordService/GetStatement": _naming(aggregator_pb2.GetStatementRequest),
    "/cairn.v1.RecordService/ListEntries": _of(
        aggregator_pb2.ListEntriesRequest(first=1, limit=10),
        aggregator_pb2.ListEntriesRequest(first=2**63, limit=1000),
    ),
    "/cairn.v1.InvitationService/Attend": _of(
        coordinator_pb2.AttendRequest(federation=FEDERATION, protocol=PROTOCOL, software="0.3.0")
    ),
    "/cairn.v1.InvitationService/FetchModel": Stage._fetch,
    "/grpc.health.v1.Health/Check": _of(*_HEALTH),
    "/grpc.health.v1.Health/Watch": _of(*_HEALTH),
}
