"""A real aggregator on loopback with mTLS, and raw calls to it under any identity."""

import itertools
import json
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from cairn.identity.authority import Authority, Subject, issue, new_authority, new_key, new_request
from cairn.identity.credentials import Identity, load_identity
from cairn.identity.names import NodeName, Role
from cairn.identity.signing_keys import load_signing_key
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.cohorts import Groups
from cairn.protocol.messages import (
    PROTOCOL,
    JobSpec,
    digest_of,
    job_spec_to_bytes,
    manifest_from_bytes,
)
from cairn.protocol.statements import MANIFEST, STATEMENT, verified
from cairn.protocol.statistics import Statistics
from cairn.provisioning.create import FederationPlan, write_federation
from cairn.runtime.timeouts import CALL_SECONDS
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc
from cairn.v1 import round_pb2 as pb
from tests.scenarios.processes import Node, free_port
from tests.warm.start import BIN

FEDERATION = "ward"
OWNERS = ("alice", "bob", "carol", "dave", "erin")
SECONDS = 2 * CALL_SECONDS  # the deadline of every call
CHUNK = 1 << 20

SMALL = Schema.of([TensorSpec("weight", "F32", (4,))])

Credentials = tuple[bytes, bytes]  # key and certificate, PEM


@contextmanager
def refused(code: grpc.StatusCode, words: str = "", reason: str = "") -> Iterator[None]:
    """What is called inside must be refused like this, in a sentence and without a trace."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    error: Any = caught.value
    assert error.code() is code, error.details()
    assert words in error.details()
    assert "Traceback" not in error.details()
    if reason:
        assert dict(error.trailing_metadata())["cairn-reason"] == reason


PLAIN = Aggregation()  # the mean, as it is
PROCESS = b"p" * 32  # of a coordinator, which registers a job once and again


class Network:
    """One aggregator process, its federation's identities, and some that do not belong there."""

    def __init__(
        self,
        directory: Path,
        started_by: Sequence[str] = (),
        /,
        *,
        floor: int = 2,
        lease_seconds: int = 30,
        **settings: float | str | list[str],
    ) -> None:
        """`started_by` is a command that starts the one behind it; `settings` are lines of the aggregator's file."""
        self._started_by = started_by
        self.directory = directory / "ward"
        ports = [free_port() for _ in range(3)]
        self.coordinator_at, self.intake_at, self.release_at = (f"localhost:{p}" for p in ports)
        plan = FederationPlan(
            FEDERATION, OWNERS, floor, self.coordinator_at, self.intake_at, self.release_at
        )
        write_federation(self.directory, plan)
        config = self.directory / "aggregator.toml"
        lines = {"lease_seconds": lease_seconds, **settings}
        further = "".join(f"\n{key} = {json.dumps(value)}" for key, value in lines.items())
        config.write_text(config.read_text().replace("\nstate", f"{further}\nstate"))
        self.root = (self.directory / "authority/authority.crt").read_bytes()
        self.credentials = self._identities()
        self._channels: dict[tuple[str, str], grpc.Channel] = {}
        self._names = (f"job-{number}" for number in itertools.count(1))
        self.node = self._start()

    @property
    def key(self) -> Ed25519PublicKey:
        return load_signing_key(self.directory / "aggregator/signing.key").public_key()

    @property
    def state(self) -> Path:
        return self.directory / "aggregator/state"

    def identity(self, name: str, role: Role = Role.OWNER) -> Identity:
        """What a node of ours reads from its files."""
        home = self.directory / name
        files = SimpleNamespace(
            certificate=home / "node.crt", key=home / "node.key", authority=home / "authority.crt"
        )
        return load_identity(files, NodeName(FEDERATION, role, name), datetime.now(UTC))

    def intake(self, who: str) -> Any:
        return aggregator_pb2_grpc.IntakeServiceStub(self.channel(who, self.intake_at))

    def release(self, who: str = "coordinator") -> Any:
        return aggregator_pb2_grpc.ReleaseServiceStub(self.channel(who, self.release_at))

    def record(self, who: str) -> Any:
        at = self.release_at if who in {"coordinator", "rival"} else self.intake_at
        return aggregator_pb2_grpc.RecordServiceStub(self.channel(who, at))

    def channel(self, who: str, address: str) -> grpc.Channel:
        if (who, address) not in self._channels:
            key, certificate = self.credentials[who]
            secrets = (key, certificate) if key else (None, None)
            credentials = grpc.ssl_channel_credentials(self.root, *secrets)
            self._channels[who, address] = grpc.secure_channel(address, credentials)
        return self._channels[who, address]

    def job(
        self,
        *,
        schema: Schema = SMALL,
        owners: Sequence[str] = OWNERS,
        floor: int = 2,
        rounds: int = 5,
        weighting: "pb.Weighting" = pb.WEIGHTING_EQUAL,
        deadline: int = 60,
        coordinator: str = "coordinator",
        examples: tuple[int, int] = (1, 1000),
        groups: Groups = (),
        task: str = "task",
        aggregation: Aggregation = PLAIN,
        statistics: Statistics | None = None,
    ) -> "Job":
        """Register a job of its own."""
        name = next(self._names)
        spec = JobSpec(
            federation=FEDERATION,
            name=name,
            task=task,
            settings={"lr": 0.1} if statistics is None else {},
            owners=tuple(sorted(owners)),
            floor=floor,
            rounds=rounds,
            weighting=weighting,
            schema=schema,
            round_deadline_seconds=deadline,
            min_examples=examples[0],
            max_examples=examples[1],
            groups=groups,
            aggregation=aggregation,
            statistics=statistics,
        )
        job = Job(self, spec, coordinator)
        job.register()
        return job

    def stop(self) -> None:
        """Stop it in good order; it must have met nothing that it did not expect."""
        self.node.send(signal.SIGTERM)
        assert self.node.ends() == 0
        assert "Traceback" not in self.node.output()
        self._hang_up()

    def restart(self, *, kill: bool) -> None:
        if kill:
            self.node.kill()
        else:
            self.node.send(signal.SIGTERM)
            assert self.node.ends() == 0
        self._hang_up()
        self.node = self._start()

    def hang_up(self, who: str) -> None:
        """Let this node's next call come over a new connection."""
        for key in [key for key in self._channels if key[0] == who]:
            self._channels.pop(key).close()

    def _hang_up(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def _start(self) -> Node:
        log = self.directory / f"{next(self._names)}.log"
        config = self.directory / "aggregator.toml"
        program = (*self._started_by, str(BIN / "aggregator-node"))
        node = Node("aggregator", log, *program, "--config", config)
        node.says("aggregator is ready")
        return node

    def _identities(self) -> dict[str, Credentials]:
        found = {"nobody": (b"", b"")}
        for name in ("aggregator", "coordinator", *OWNERS):
            home = self.directory / name
            found[name] = (home / "node.key").read_bytes(), (home / "node.crt").read_bytes()
        authority = Authority(self.root, (self.directory / "authority/authority.key").read_bytes())
        elsewhere = new_authority(FEDERATION, datetime.now(UTC))
        for who, role, name, issuer in (
            ("mallory", Role.OWNER, "mallory", authority),  # certified, and not on the roster
            ("rival", Role.COORDINATOR, "rival", authority),  # another model owner
            ("stranger", Role.OWNER, "alice", elsewhere),  # another authority's alice
        ):
            subject = Subject(NodeName(FEDERATION, role, name))
            key = new_key()
            certificate = issue(issuer, new_request(subject, key), subject, datetime.now(UTC))
            found[who] = key, certificate
        subject, key = Subject(NodeName(FEDERATION, Role.OWNER, "alice")), new_key()
        then = datetime.now(UTC) - timedelta(days=2)  # for a day: it has expired
        found["lapsed"] = key, issue(authority, new_request(subject, key), subject, then, days=1)
        found["neighbour"] = _certified_elsewhere(authority, "spiffe://elsewhere/owner/alice")
        found["nameless"] = _certified_elsewhere(authority, "https://alice.example")
        return found


def _certified_elsewhere(authority: Authority, uri: str) -> Credentials:
    """A certificate of this authority with a name that `cairn sign` would never give."""
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    signing_key = load_pem_private_key(authority.key, None)
    assert isinstance(signing_key, ec.EllipticCurvePrivateKey)
    key = new_key()
    public_key = load_pem_private_key(key, None).public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(issuer.subject, x509.Name([]), public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False
        )
        .sign(signing_key, hashes.SHA256())
    )
    return key, certificate.public_bytes(Encoding.PEM)


class Job:
    """A registered job and the calls of its coordinator."""

    def __init__(self, network: Network, spec: JobSpec, coordinator: str) -> None:
        self.network = network
        self.spec = spec
        self.body = job_spec_to_bytes(spec)
        self.coordinator = network.release(coordinator)
        self.process = PROCESS
        self.epoch = 0

    @property
    def first_base(self) -> bytes:
        """A model of this job alone: releases of one base must not differ by a few owners."""
        size = self.spec.schema.total_bytes
        if self.spec.statistics is not None:
            return bytes(size)
        seed = sha256(self.spec.name.encode()).digest()
        return (seed * (size // len(seed) + 1))[:size]

    def register(self) -> aggregator_pb2.RegisterJobResponse:
        request = aggregator_pb2.RegisterJobRequest(
            job_spec=self.body, protocol=PROTOCOL, process=self.process
        )
        answer: aggregator_pb2.RegisterJobResponse = self.coordinator.RegisterJob(
            request, timeout=SECONDS
        )
        self.epoch = answer.epoch
        return answer

    def bring(self, payload: bytes, digest: bytes | None = None, chunk_bytes: int = CHUNK) -> None:
        """Bring the model that its first round starts from, under its digest or another."""
        header = aggregator_pb2.SubmitModelHeader(
            job=self.spec.name,
            epoch=self.epoch,
            digest=self.spec.schema.digest(payload) if digest is None else digest,
        )
        part = aggregator_pb2.SubmitModelRequest
        starts = range(0, len(payload), chunk_bytes)
        chunks = (part(chunk=payload[start : start + chunk_bytes]) for start in starts)
        parts = itertools.chain([part(header=header)], chunks)
        self.coordinator.SubmitModel(parts, timeout=SECONDS)

    def open(
        self,
        cohort: Sequence[str] = ("alice", "bob"),
        base: bytes | None = None,
        number: int = 1,
        phase: "pb.Phase" = pb.PHASE_TRAIN,
    ) -> "OpenRound":
        """Open a round; `base` is the payload of the model it starts from, the job's first by default."""
        payload = self.first_base if base is None else base
        request = aggregator_pb2.OpenRoundRequest(
            job=self.spec.name,
            round=number,
            phase=phase,
            cohort=cohort,
            base_digest=self.spec.schema.digest(payload),
            epoch=self.epoch,
        )
        answer = self.coordinator.OpenRound(request, timeout=SECONDS)
        return OpenRound(self, answer.manifest)

    def run(self, updates: dict[str, bytes], number: int = 1, base: bytes | None = None) -> "Ended":
        """A whole round: open it, push everybody's update, collect."""
        opened = self.open(sorted(updates), base, number)
        for owner, update in updates.items():
            opened.join(owner)
            opened.push(owner, update)
        return opened.ends()


@dataclass(frozen=True)
class Ended:
    """How a round ended; `statement` and `payload` are those of its release."""

    state: int
    reason: str
    exclusions: dict[str, str]
    statement: pb.ReleaseStatement
    payload: bytes


class OpenRound:
    """An open round, as its owners and its coordinator see it."""

    def __init__(self, job: Job, signed: pb.Signed) -> None:
        self.job = job
        self.signed = signed
        body = verified(job.network.key, MANIFEST, signed)
        self.manifest = manifest_from_bytes(body)
        self.digest = digest_of(body)

    def join(self, owner: str) -> aggregator_pb2.JoinRoundResponse:
        request = aggregator_pb2.JoinRoundRequest(
            manifest_digest=self.digest, join=True, protocol=PROTOCOL
        )
        answer: aggregator_pb2.JoinRoundResponse = self._intake(owner).JoinRound(
            request, timeout=SECONDS
        )
        return answer

    def decline(self, owner: str, reason: "pb.Reason") -> None:
        request = aggregator_pb2.JoinRoundRequest(
            manifest_digest=self.digest, reason=reason, protocol=PROTOCOL
        )
        self._intake(owner).JoinRound(request, timeout=SECONDS)

    def header(self, **changes: Any) -> aggregator_pb2.UpdateHeader:
        total = self.job.spec.schema.total_bytes if self.manifest.trains else 0
        values: dict[str, Any] = {
            "manifest_digest": self.digest,
            "base_digest": self.manifest.base_digest,
            "examples": 1,
            "total_bytes": total,
            "salt": bytes(32),
        }
        return aggregator_pb2.UpdateHeader(**values | changes)

    def parts(self, payload: bytes, **changes: Any) -> list[aggregator_pb2.SubmitUpdateRequest]:
        """The stream of a good update, with the header's fields changed as given."""
        digest = self.job.spec.schema.digest(payload) if self.manifest.trains else b""
        chunks = [payload[begin : begin + CHUNK] for begin in range(0, len(payload), CHUNK)]
        return [
            aggregator_pb2.SubmitUpdateRequest(header=self.header(**changes)),
            *(aggregator_pb2.SubmitUpdateRequest(chunk=chunk) for chunk in chunks),
            aggregator_pb2.SubmitUpdateRequest(
                commit=aggregator_pb2.UpdateCommit(payload_digest=digest)
            ),
        ]

    def push(self, owner: str, payload: bytes, **changes: Any) -> pb.Signed:
        """Push an update; returns the signed receipt."""
        salt = sha256(owner.encode()).digest()
        return self.submit(owner, self.parts(payload, **{"salt": salt} | changes))

    def submit(self, owner: str, parts: Iterable[aggregator_pb2.SubmitUpdateRequest]) -> pb.Signed:
        answer = self._intake(owner).SubmitUpdate(iter(parts), timeout=SECONDS)
        receipt: pb.Signed = answer.receipt
        return receipt

    def receipt(self, owner: str) -> pb.Signed:
        request = aggregator_pb2.GetReceiptRequest(manifest_digest=self.digest)
        receipt: pb.Signed = self._intake(owner).GetReceipt(request, timeout=SECONDS).receipt
        return receipt

    def watch(self) -> Any:
        request = aggregator_pb2.WatchRoundRequest(
            manifest_digest=self.digest, epoch=self.job.epoch
        )
        return self.job.coordinator.WatchRound(request, timeout=SECONDS)

    def collect(self) -> tuple[pb.Signed, bytes]:
        """The signed statement of the release and all bytes of its chunks."""
        request = aggregator_pb2.CollectReleaseRequest(
            manifest_digest=self.digest, epoch=self.job.epoch
        )
        parts = list(self.job.coordinator.CollectRelease(request, timeout=SECONDS))
        payload = b"".join(part.chunk for part in parts[1:])
        assert len(payload) == parts[0].header.total_bytes
        return parts[0].header.statement, payload

    def abort(self) -> None:
        request = aggregator_pb2.AbortRoundRequest(
            manifest_digest=self.digest, epoch=self.job.epoch
        )
        self.job.coordinator.AbortRound(request, timeout=SECONDS)

    def ends(self) -> Ended:
        """Wait for the round's end, and collect what it released."""
        last = list(self.watch())[-1]
        statement, payload = pb.ReleaseStatement(), b""
        if last.state == aggregator_pb2.ROUND_STATE_RELEASED:
            signed, payload = self.collect()
            body = verified(self.job.network.key, STATEMENT, signed)
            statement = pb.ReleaseStatement.FromString(body)
        return Ended(
            state=last.state,
            reason=_word(last.reason),
            exclusions={e.owner: _word(e.reason) for e in last.exclusions},
            statement=statement,
            payload=payload,
        )

    def _intake(self, owner: str) -> Any:
        return self.job.network.intake(owner)


def _word(reason: "pb.Reason") -> str:
    return pb.Reason.Name(reason).removeprefix("REASON_")
