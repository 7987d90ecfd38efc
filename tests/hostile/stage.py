"""A coordinator written by hand, and one real owner process that attends it."""

import itertools
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cairn.identity.certified import certified
from cairn.identity.signing_keys import load_signing_key
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation, aggregation_to_pb
from cairn.protocol.limits import LARGEST_SHARE
from cairn.protocol.messages import PROTOCOL
from cairn.protocol.statements import MANIFEST, sign
from cairn.v1 import coordinator_pb2, coordinator_pb2_grpc
from cairn.v1 import round_pb2 as pb
from tests.hostile.checks import Entry, owner_entries
from tests.scenarios.federation import TASK
from tests.scenarios.processes import Node, until
from tests.service.network import FEDERATION, Job, Network
from tests.warm.start import BIN

LINEAR = Schema.of([TensorSpec("weight", "F32", (1, 2)), TensorSpec("bias", "F32", (1,))])
LARGE = Schema.of([TensorSpec("weight", "F32", ((1 << 19) + 1,))])  # more than two chunks
COHORT = ("alice", "bob", "carol")
_LOOK_SECONDS = 0.1  # how often a caller that has left is noticed
_BASES = itertools.count(1)
_TASK = """
[tasks.task]
file = "task.py"
data = "data"
metrics = ["value"]
max_failures = 1000

[tasks.task.settings]
lr = [0.0, 1.0]
"""


_LARGE_TASK = TASK.replace(
    "return nn.Linear(2, 1)",
    "return nn.ParameterDict({'weight': nn.Parameter(torch.zeros((1 << 19) + 1))})",
)


class HostileCoordinator(coordinator_pb2_grpc.InvitationServiceServicer):
    """Says what the test puts into `says`, and serves whatever bytes lie in `models`.

    The models whose digests are in `trickling` are served byte by byte, a few in a second. The others come in
    chunks of `chunk_bytes`, whatever may be sent in one.
    """

    def __init__(self) -> None:
        self.says: defaultdict[str, queue.Queue[coordinator_pb2.AttendResponse]] = defaultdict(
            queue.Queue
        )
        self.models: dict[bytes, bytes] = {}
        self.fetched: list[tuple[str, bytes]] = []
        self.fetched_at: dict[bytes, float] = {}  # by a model's digest, when it was last asked for
        self.attended: list[str] = []
        self.trickling: set[bytes] = set()
        self.chunk_bytes = 1 << 20
        self._server: grpc.Server | None = None

    def start(self, network: Network, who: str = "coordinator") -> None:
        """Listen where the owners' files say, under the coordinator's own certificate or another's."""
        pool = ThreadPoolExecutor(16)
        self._server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        coordinator_pb2_grpc.add_InvitationServiceServicer_to_server(self, self._server)
        checked = health.HealthServicer()
        checked.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checked, self._server)
        pair = network.credentials[who]
        secrets = grpc.ssl_server_credentials([pair], network.root, require_client_auth=True)
        self._server.add_secure_port(network.coordinator_at, secrets)
        self._server.start()

    def stop(self) -> None:
        assert self._server is not None
        self._server.stop(0).wait(5)

    def Attend(  # noqa: N802 - gRPC calls it so
        self, request: coordinator_pb2.AttendRequest, context: grpc.ServicerContext
    ) -> Iterator[coordinator_pb2.AttendResponse]:
        del request
        self.attended.append(_owner(context))
        waiting = self.says[_owner(context)]
        while context.is_active():
            with suppress(queue.Empty):
                said = waiting.get(timeout=_LOOK_SECONDS)
                if not context.is_active():
                    waiting.put(said)  # for the stream that follows
                    return
                yield said
                if said.HasField("finished"):
                    return

    def FetchModel(  # noqa: N802 - gRPC calls it so
        self, request: coordinator_pb2.FetchModelRequest, context: grpc.ServicerContext
    ) -> Iterator[coordinator_pb2.FetchModelResponse]:
        self.fetched_at[request.digest] = time.monotonic()
        self.fetched.append((_owner(context), request.digest))
        model = self.models[request.digest]
        header = coordinator_pb2.FetchModelHeader(total_bytes=len(model))
        yield coordinator_pb2.FetchModelResponse(header=header)
        if request.digest not in self.trickling:
            for place in range(0, len(model), self.chunk_bytes):
                chunk = model[place : place + self.chunk_bytes]
                yield coordinator_pb2.FetchModelResponse(chunk=chunk)
            return
        pause = threading.Event()
        for place in range(request.offset, len(model)):
            if not context.is_active():
                return
            yield coordinator_pb2.FetchModelResponse(chunk=model[place : place + 1])
            pause.wait(_LOOK_SECONDS)


class Stage:
    """An aggregator, the hostile coordinator and alice's process, with the files of all.

    `task` is the code of alice's task, and `rules` its table in alice's file.
    """

    def __init__(self, network: Network, task: str = TASK, rules: str = _TASK) -> None:
        self.network = network
        self._starts = itertools.count(1)
        self.coordinator = HostileCoordinator()
        self.coordinator.start(network)
        self.data = network.directory / "data"
        self.data.mkdir()
        (self.data / "value").write_text("1.0")
        (self.data / "mode").write_text("good")
        (network.directory / "task.py").write_text(task)
        (network.directory / "large.py").write_text(_LARGE_TASK)
        config = network.directory / "alice.toml"
        text = config.read_text().replace(
            "\n[identity]", '\ntrusted = ["bob", "carol", "dave"]\n\n[identity]', 1
        )
        large = _TASK.replace("task.py", "large.py").replace("tasks.task", "tasks.large")
        config.write_text(text + rules + large)
        self.alice = self.start_alice()

    @property
    def key(self) -> Ed25519PrivateKey:
        """The aggregator's own: what it would never sign can be signed with it here."""
        return load_signing_key(self.network.directory / "aggregator/signing.key")

    @property
    def state(self) -> Path:
        return self.network.directory / "alice/state"

    def start_alice(self, until: str = "attending") -> Node:
        log = self.network.directory / f"alice-{next(self._starts)}.log"
        config = self.network.directory / "alice.toml"
        node = Node("alice", log, BIN / "owner-node", "--config", config)
        node.says(until)
        return node

    def job(self, **terms: Any) -> Job:
        values: dict[str, Any] = {"schema": LINEAR, "floor": 3}
        return self.network.job(**values | terms)

    def entries(self, kind: str) -> list[Entry]:
        return [entry for entry in owner_entries(self.state) if entry.kind == kind]

    def invite(self, signed: pb.Signed, job_spec: bytes) -> None:
        invitation = coordinator_pb2.Invitation(manifest=signed, job_spec=job_spec)
        self.coordinator.says["alice"].put(coordinator_pb2.AttendResponse(invitation=invitation))

    def tell(self, manifest_digest: bytes, **fields: Any) -> None:
        outcome = coordinator_pb2.Outcome(manifest_digest=manifest_digest, **fields)
        self.coordinator.says["alice"].put(coordinator_pb2.AttendResponse(outcome=outcome))

    def declines(self, signed: pb.Signed, job_spec: bytes, reason: str) -> None:
        """Invite alice: it must decline with this reason, and write that down."""
        known = len(self.entries("declined"))
        self.invite(signed, job_spec)
        until(lambda: len(self.entries("declined")) > known, "alice declines")
        (entry,) = self.entries("declined")[known:]
        assert entry.facts["reason"] == reason
        assert entry.facts["manifest_digest"] == sha256(signed.body).hexdigest()

    def refuses(self, signed: pb.Signed, job_spec: bytes, why: str = "") -> None:
        """Invite alice: it must refuse the invitation, because of `why`, and write that down.

        The same refusal is written down once in a run, so that nobody can fill the disk.
        """
        known = len(self.alice.events("invitation refused"))
        self.invite(signed, job_spec)
        until(lambda: len(self.alice.events("invitation refused")) > known, "alice refuses")
        (event,) = self.alice.events("invitation refused")[known:]
        assert why in event["reason"]
        until(lambda: event["reason"] in [e.facts["why"] for e in self.entries("refused")], why)

    def close(self) -> None:
        self.coordinator.stop()
        if self.alice.process.poll() is None:
            self.alice.kill()
        assert "Traceback" not in self.alice.output()


def fresh_base() -> bytes:
    """A model for LINEAR that no round of the session has started from."""
    return np.array([next(_BASES), 0.5, -0.25], "<f4").tobytes()


def manifest(stage: Stage, of: Job, base: bytes | None = None, **changes: Any) -> pb.RoundManifest:
    """The manifest that the aggregator would sign for a first round, with these fields changed."""
    payload = of.first_base if base is None else base
    values: dict[str, Any] = {
        "federation": FEDERATION,
        "job": of.spec.name,
        "job_digest": sha256(of.body).digest(),
        "round": 1,
        "phase": pb.PHASE_TRAIN,
        "cohort": COHORT,
        "base_digest": of.spec.schema.digest(payload),
        "aggregation": aggregation_to_pb(Aggregation()),
        "weighting": of.spec.weighting,
        "encoding": pb.ENCODING_WHOLE,
        "floor": 3,
        "deadline_unix_ms": int(time.time() * 1000) + 60_000,
        "lease_seconds": 5,
        "nonce": bytes(32),
        "ledger_head": bytes(32),
        "protocol": PROTOCOL,
        "largest_share": LARGEST_SHARE,
        "software": "1",
    }
    stage.coordinator.models[values["base_digest"]] = payload
    return pb.RoundManifest(**values | changes)


def signed(
    stage: Stage, message: pb.RoundManifest, key: Ed25519PrivateKey | None = None
) -> pb.Signed:
    """The manifest under the aggregator's key, or under another."""
    return sign(key or stage.key, MANIFEST, message.SerializeToString())


def _owner(context: grpc.ServicerContext) -> str:
    return certified(context.auth_context()["x509_pem_cert"][0]).node.name
