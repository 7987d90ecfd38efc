"""An owner among what a test plays: a coordinator, an aggregator and a training."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cairn.errors import (
    NotFound,
)
from cairn.ledger.chain import Entry
from cairn.model.exchanged import Exchanged
from cairn.model.schema import Schema
from cairn.protocol.aggregation import Aggregation, aggregation_to_pb
from cairn.protocol.messages import (
    PROTOCOL,
    Manifest,
    digest_of,
    job_spec_to_bytes,
    manifest_to_bytes,
)
from cairn.protocol.statements import MANIFEST as MANIFEST_TYPE
from cairn.protocol.statements import RECEIPT, STATEMENT, sign
from cairn.runtime.clock import Clock
from cairn.storage.database import StateDirectory
from cairn.tasks.loader import TaskFailed
from cairn.tasks.settings import PrivateSettings
from cairn.transport.receiver import PayloadReceiver
from cairn.v1 import aggregator_pb2, coordinator_pb2
from cairn.v1 import round_pb2 as pb
from owner_node import events
from owner_node.aggregator_client import AggregatorClient
from owner_node.download import Downloader
from owner_node.participation import Participation
from owner_node.policy import Policy
from owner_node.receipts import Receipts
from owner_node.record_privacy import PrivacyAccount
from owner_node.records.decisions import DecisionLog
from owner_node.records.ledger import OwnerLedger
from owner_node.settlement import Settlement
from owner_node.task_rules import TaskRules
from owner_node.training.kept_tensors import KeptTensors
from owner_node.training.supervisor import Trained, Work
from owner_node.updates.prepare import DisclosureRules
from owner_node.updates.spool import UpdateSpool
from owner_node.upload import Uploader
from tests.unit.owner_node.test_policy import JOB, LAST_RELEASE, MANIFEST

LONG = 30.0
KEY = Ed25519PrivateKey.generate()
JOB_BYTES = job_spec_to_bytes(JOB)
BASE = np.array([1.0, 2.0], np.float32).tobytes()
UPDATE = np.array([3.0, 4.0], np.float32)


@dataclass
class FakeStub:
    """The aggregator behind the real client: it answers as the test has set it."""

    log: list[str] = field(default_factory=list)
    join_error: Exception | None = None
    receipt: Callable[[aggregator_pb2.Receipt], aggregator_pb2.Receipt] = lambda receipt: receipt
    receipts: dict[bytes, pb.Signed] = field(default_factory=dict)
    statements: dict[bytes, pb.Signed] = field(default_factory=dict)
    statement_error: Exception | None = None
    receipt_error: Exception | None = None
    submitted: list[aggregator_pb2.UpdateHeader] = field(default_factory=list)
    asked: list[aggregator_pb2.GetReceiptRequest] = field(default_factory=list)
    submit_error: Exception | None = None
    open_seconds: int = 600
    joined: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def JoinRound(  # noqa: N802 - as the stub has it
        self, request: aggregator_pb2.JoinRoundRequest, timeout: float
    ) -> aggregator_pb2.JoinRoundResponse:
        assert timeout
        assert request.protocol == PROTOCOL
        if not request.join:
            self.log.append(f"declined {pb.Reason.Name(request.reason)}")
            return aggregator_pb2.JoinRoundResponse()
        self.log.append("joined")
        self.joined.release()
        if self.join_error is not None:
            raise self.join_error
        return aggregator_pb2.JoinRoundResponse(
            lease_seconds=600,
            open_seconds=self.open_seconds,
            update_accepted=request.manifest_digest in self.receipts,
        )

    @property
    def SubmitUpdate(self) -> Any:  # noqa: N802 - as the stub has it
        return Submit(self)

    def submit(self, parts: Iterator[Any], timeout: float) -> aggregator_pb2.SubmitUpdateResponse:
        assert timeout
        if self.submit_error is not None:
            raise self.submit_error
        header, *_, last = list(parts)
        self.log.append("submitted")
        self.submitted.append(header.header)
        receipt = aggregator_pb2.Receipt(
            manifest_digest=header.header.manifest_digest,
            owner="bob",
            payload_digest=last.commit.payload_digest,
            examples=header.header.examples,
            metrics=header.header.metrics,
            salt=header.header.salt,
        )
        signed = sign(KEY, RECEIPT, self.receipt(receipt).SerializeToString())
        self.receipts[header.header.manifest_digest] = signed
        return aggregator_pb2.SubmitUpdateResponse(receipt=signed)

    def GetReceipt(  # noqa: N802 - as the stub has it
        self, request: aggregator_pb2.GetReceiptRequest, timeout: float
    ) -> aggregator_pb2.GetReceiptResponse:
        assert timeout
        self.asked.append(request)
        if self.receipt_error is not None:
            raise self.receipt_error
        if request.manifest_digest not in self.receipts:
            raise NotFound("no receipt")
        return aggregator_pb2.GetReceiptResponse(receipt=self.receipts[request.manifest_digest])

    def GetStatement(  # noqa: N802 - as the stub has it
        self, request: aggregator_pb2.GetStatementRequest, timeout: float
    ) -> aggregator_pb2.GetStatementResponse:
        assert timeout
        self.log.append("asked for the statement")
        if self.statement_error is not None:
            raise self.statement_error
        signed = self.statements.get(request.manifest_digest)  # none of a round that is open
        return aggregator_pb2.GetStatementResponse(statement=signed, ledger_head=HEAD_NOW)


class Submit:
    """A method that streams: called and waited for, or begun."""

    def __init__(self, stub: FakeStub) -> None:
        self._stub = stub

    def __call__(self, parts: Iterator[Any], timeout: float) -> Any:
        return self.future(parts, timeout).result()

    def future(self, parts: Iterator[Any], timeout: float) -> "Submission":
        return Submission(self._stub, parts, timeout)


@dataclass
class Submission:
    """A push under way: it is this owner's turn at once, and its stream is read for its result."""

    stub: FakeStub
    parts: Iterator[Any]
    timeout: float

    def initial_metadata(self) -> tuple[()]:
        return ()

    def result(self) -> aggregator_pb2.SubmitUpdateResponse:
        return self.stub.submit(self.parts, self.timeout)


class FakeHeads:
    def __init__(self) -> None:
        self.noted: list[pb.Signed] = []

    def seen(self) -> None:
        return None

    def note(self, signed: pb.Signed) -> None:
        self.noted.append(signed)


class FakeClock(Clock):
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class FakeTask:
    """A training process that trains as the test has set it, until it is cancelled."""

    def __init__(self) -> None:
        self.base = memoryview(bytearray(len(BASE)))
        self.update = memoryview(bytearray(UPDATE.tobytes()))
        self.hold = False
        self.metrics = {"loss": 0.5, "patients": 17.0}
        self.schema = JOB.schema
        self.gives_gradients = False
        self.kept = memoryview(bytearray(8))
        self.kept_schema: Schema | None = None
        self.model_error: TaskFailed | None = None
        self.lent = 0
        self.before: Callable[[], object] = lambda: None
        self.works: list[Work] = []
        self.loops: list[Any] = []  # what it asks for where the training is private
        self.trains = threading.Event()
        self.cancelled = threading.Event()

    def model(self, is_over: Callable[[], bool]) -> Exchanged:
        if is_over() or self.model_error is not None:
            raise self.model_error or TaskFailed("the training was cancelled")
        return Exchanged(
            self.schema,
            frozenset(),
            self.kept_schema,
            trained=frozenset(spec.name for spec in self.schema.tensors),
            gives_gradients=self.gives_gradients,
        )

    def kept_buffer(self, _schema: object) -> memoryview:
        return self.kept

    def base_buffer(self, _schema: object) -> memoryview:
        self.lent += 1
        return self.base

    def has_base(self, _schema: object, _digest: bytes) -> bool:
        return False

    def keep_base(self, _digest: bytes) -> None:
        """It is fetched in every round."""

    def run(self, work: Work, is_over: Callable[[], bool] = lambda: False) -> Trained:
        self.before()
        if is_over():
            raise TaskFailed("the training was cancelled")
        self.works.append(work)
        self.trains.set()
        if work.private is not None:
            for why_not in map(work.private.spend, self.loops):
                if why_not:
                    raise TaskFailed(why_not, pb.REASON_BUDGET_SPENT)
        if self.hold:
            assert self.cancelled.wait(LONG)
            raise TaskFailed("the training was cancelled")
        return Trained(self.update, 5, self.metrics)

    def cancel(self) -> None:
        self.cancelled.set()


class FakeCoordinator:
    error: Exception | None = None

    def fetch(self, _digest: bytes, incoming: PayloadReceiver, _seconds: float) -> None:
        if self.error is not None:
            raise self.error
        incoming.write(memoryview(BASE))


class Bench:
    """An owner, bob, among what the test plays."""

    def __init__(
        self, path: Path, clip: float | None = None, private: PrivateSettings | None = None
    ) -> None:
        self.state = StateDirectory(path / "state", "owner.sqlite")
        self.stub = FakeStub()
        self.task = FakeTask()
        self.clock = FakeClock()
        self.heads = FakeHeads()
        self.coordinator = FakeCoordinator()
        self.ledger = OwnerLedger(self.state, Clock())
        self.aggregator = aggregator = AggregatorClient.__new__(AggregatorClient)
        parts = {"_intake": self.stub, "_records": self.stub, "_key": KEY.public_key()}
        parts |= {"_owner": "bob", "_heads": self.heads, "_noting_heads": threading.Lock()}
        vars(aggregator).update(parts)
        rules = {"tumours": DisclosureRules(frozenset({"loss"}), clip)}
        self.stopping = stopping = threading.Event()
        self.events: list[events.Event] = []
        tell, owner = self.events.append, ("clinics", "bob")
        receipts = Receipts(aggregator, self.ledger, tell)
        self.records = DecisionLog(self.ledger, receipts, lambda: "sha256:00", tell)
        self.kept = UpdateSpool(path / "state", self.ledger.past.may_leave_again, tell)
        whats = (aggregator, self.ledger, self.kept, receipts)
        self.outcomes = Settlement(*whats, *owner, self.clock, tell)
        uploader = Uploader(*whats, rules, lambda: "sha256:00", stopping, tell)
        policy = Policy(
            "clinics", "bob", 3, {"tumours": TaskRules({"lr": (0.0, 1.0)}, private=private)}
        )
        tasks: Any = {"tumours": self.task}
        coordinator: Any = self.coordinator
        lasting = KeptTensors(
            path / "state", self.ledger.past.kept_rounds, self.outcomes.settle_job, tell
        )
        downloader = Downloader(coordinator, 1e9, stopping)
        account = PrivacyAccount(self.ledger, {"tumours": private} if private else {}, tell)
        steps = (self.records, downloader, uploader, self.outcomes, lasting, account)
        self.rounds = Participation(policy, *steps, aggregator, tasks, stopping, tell)

    def entries(self) -> list[Entry]:
        return list(self.ledger._ledger.all())

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.entries()]

    def facts(self, kind: str) -> dict[str, Any]:
        (found,) = [entry.facts for entry in self.entries() if entry.kind == kind]
        return found


def invitation(manifest: Manifest = MANIFEST, job: bytes = JOB_BYTES) -> coordinator_pb2.Invitation:
    signed = sign(KEY, MANIFEST_TYPE, manifest_to_bytes(manifest))
    return coordinator_pb2.Invitation(manifest=signed, job_spec=job)


def invitation_of_gradients() -> coordinator_pb2.Invitation:
    aggregation = Aggregation(
        pb.CONTENT_GRADIENTS,
        optimizer=pb.OPTIMIZER_SGD,
        optimizer_numbers={"lr": 0.1, "momentum": 0},
    )
    job = job_spec_to_bytes(replace(JOB, aggregation=aggregation))
    manifest = replace(MANIFEST, aggregation=aggregation, job_digest=digest_of(job))
    return invitation(manifest, job)


DIGEST = digest_of(manifest_to_bytes(MANIFEST))
HEAD_NOW = pb.Signed(type="the head behind the release")


def statement(commitments: list[bytes], key: Ed25519PrivateKey = KEY) -> pb.Signed:
    others = [bytes([n]) * 32 for n in range(3 - len(commitments))]
    body = pb.ReleaseStatement(
        manifest_digest=DIGEST,
        federation="clinics",
        job="tumours",
        round=4,
        phase=pb.PHASE_TRAIN,
        release_digest=b"n" * 32,
        base_digest=LAST_RELEASE,
        contributors=3,
        aggregation=aggregation_to_pb(Aggregation()),
        weighting=pb.WEIGHTING_EQUAL,
        encoding=pb.ENCODING_WHOLE,
        ledger_head=bytes(32),
        floor=3,
        commitments=sorted([*others, *commitments]),
    )
    return sign(key, STATEMENT, body.SerializeToString())


def outcome(signed: pb.Signed | None) -> coordinator_pb2.Outcome:
    return coordinator_pb2.Outcome(
        manifest_digest=DIGEST, statement=signed, reason=pb.REASON_ABORTED
    )


def counted(bench: Bench) -> tuple[bool, str]:
    facts = bench.facts("released")
    return facts["counted"], facts.get("why", "")


def questions(bench: Bench) -> int:
    return bench.stub.log.count("asked for the statement")


def sent_without_an_answer(bench: Bench) -> pb.Signed:
    """The update has left, its answer is lost and this owner is started anew; returns the lost receipt."""
    bench.rounds.take_part(invitation())
    receipt = bench.stub.receipts[DIGEST]
    past = bench.ledger.past
    past._receipts.clear()
    return receipt
