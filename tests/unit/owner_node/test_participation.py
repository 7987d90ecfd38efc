"""A whole round of an owner, with a coordinator, an aggregator and a training that the test plays."""

import base64
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cairn.errors import (
    CairnError,
    CallerNotAllowed,
    Conflict,
    InvalidMessage,
    NotFound,
    Unavailable,
    UpdateRefused,
    WrongState,
)
from cairn.ledger.chain import Entry
from cairn.model.exchanged import Exchanged
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.messages import (
    PROTOCOL,
    Manifest,
    digest_of,
    job_spec_to_bytes,
    manifest_to_bytes,
)
from cairn.protocol.statements import MANIFEST as MANIFEST_TYPE
from cairn.protocol.statements import RECEIPT, STATEMENT, commitment_of, sign
from cairn.runtime.clock import Clock
from cairn.storage.database import StateDirectory
from cairn.tasks.loader import TaskFailed
from cairn.transport.receiver import PayloadReceiver
from cairn.v1 import aggregator_pb2, coordinator_pb2
from cairn.v1 import round_pb2 as pb
from owner_node import events
from owner_node.aggregator_client import AggregatorClient
from owner_node.download import Downloader
from owner_node.participation import Participation
from owner_node.policy import Declined, Invited, Policy, TaskRules
from owner_node.receipts import Receipts
from owner_node.records.decisions import DecisionLog
from owner_node.records.ledger import OwnerLedger
from owner_node.settlement import Settlement
from owner_node.training.supervisor import Trained, TrainingSupervisor, Work
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
        self.model_error: TaskFailed | None = None
        self.lent = 0
        self.before: Callable[[], object] = lambda: None
        self.works: list[Work] = []
        self.trains = threading.Event()
        self.cancelled = threading.Event()

    def model(self, is_over: Callable[[], bool]) -> Exchanged:
        if is_over() or self.model_error is not None:
            raise self.model_error or TaskFailed("the training was cancelled")
        return Exchanged(self.schema, frozenset())

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

    def __init__(self, path: Path, clip: float | None = None) -> None:
        self.state = StateDirectory(path / "state", "owner.sqlite")
        self.stub = FakeStub()
        self.task = FakeTask()
        self.clock = FakeClock()
        self.heads = FakeHeads()
        self.coordinator = FakeCoordinator()
        self.ledger = OwnerLedger(self.state, Clock())
        aggregator = AggregatorClient.__new__(AggregatorClient)
        parts = {"_intake": self.stub, "_records": self.stub, "_key": KEY.public_key()}
        parts |= {"_owner": "bob", "_heads": self.heads, "_noting_heads": threading.Lock()}
        vars(aggregator).update(parts)
        rules = {"tumours": DisclosureRules(frozenset({"loss"}), clip)}
        self.stopping = stopping = threading.Event()
        self.events: list[events.Event] = []
        tell, owner = self.events.append, ("clinics", "bob")
        receipts = Receipts(aggregator, self.ledger, tell)
        self.records = DecisionLog(self.ledger, receipts, lambda: "sha256:00", tell)
        self.kept = UpdateSpool(path / "state", self.ledger.past.may_leave_again)
        whats = (aggregator, self.ledger, self.kept, receipts)
        self.outcomes = Settlement(*whats, *owner, self.clock, tell)
        uploader = Uploader(*whats, rules, lambda: "sha256:00", stopping, tell)
        policy = Policy("clinics", "bob", 3, {"tumours": TaskRules({"lr": (0.0, 1.0)})})
        tasks: Any = {"tumours": self.task}
        coordinator: Any = self.coordinator
        steps = (self.records, Downloader(coordinator, 1e9, stopping), uploader, self.outcomes)
        self.rounds = Participation(policy, *steps, aggregator, tasks, stopping, tell)

    def entries(self) -> list[Entry]:
        return list(self.ledger._ledger.all())

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.entries()]

    def facts(self, kind: str) -> dict[str, Any]:
        (found,) = [entry.facts for entry in self.entries() if entry.kind == kind]
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.state.close()


def invitation(manifest: Manifest = MANIFEST) -> coordinator_pb2.Invitation:
    signed = sign(KEY, MANIFEST_TYPE, manifest_to_bytes(manifest))
    return coordinator_pb2.Invitation(manifest=signed, job_spec=JOB_BYTES)


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
        rule=pb.RULE_MEAN,
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


def test_a_node_that_was_told_to_stop_joins_no_round(bench: Bench) -> None:
    """As one that waits, meanwhile, for the end of a round of another job."""
    bench.stopping.set()
    bench.rounds.take_part(invitation())
    assert (bench.stub.log, bench.kinds()) == ([], [])


def test_a_round_is_joined_and_recorded_before_its_update_leaves(bench: Bench) -> None:
    bench.rounds.take_part(invitation())
    assert bench.stub.log == ["joined", "submitted"]
    assert bench.kinds() == ["joined", "sent", "receipt"]
    sent = bench.facts("sent")
    assert (sent["bytes"], sent["tensors"], sent["examples"]) == (8, 1, 5)
    assert (sent["metrics"], sent["dropped_metrics"]) == ({"loss": 0.5}, ["patients"])
    assert dict(bench.stub.submitted[0].metrics) == {"loss": 0.5}


def test_where_the_ledger_cannot_be_written_nothing_leaves(bench: Bench) -> None:
    record = bench.ledger.record

    def full(kind: str, facts: dict[str, object]) -> None:
        if kind == "sent":
            bench.state.db.execute("PRAGMA query_only = ON")
        record(kind, facts)

    bench.ledger.record = full  # type: ignore[method-assign, assignment]  # the disk fails here
    bench.rounds.take_part(invitation())
    assert bench.stub.submitted == []
    assert bench.stub.log == ["joined", "declined REASON_NOT_COUNTED"]
    assert bench.kinds() == ["joined"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_does_not_leave(tmp_path: Path, value: float) -> None:
    bench = Bench(tmp_path, clip=1.0)
    bench.task.update[:4] = np.float32(value).tobytes()
    bench.rounds.take_part(invitation())
    assert bench.stub.log == ["joined", "declined REASON_NOT_COUNTED"]
    why = "after training the tensor w has a value that is NaN or infinite"
    assert bench.facts("declined")["why"] == why
    bench.state.close()


@pytest.mark.parametrize(
    ("encoding", "clip", "phase", "in_place"),
    [
        (pb.ENCODING_WHOLE, None, pb.PHASE_TRAIN, True),
        (pb.ENCODING_WHOLE, 1.0, pb.PHASE_TRAIN, False),
        (pb.ENCODING_BF16_DELTAS, None, pb.PHASE_TRAIN, False),
        (pb.ENCODING_INT8_DELTAS, 1.0, pb.PHASE_TRAIN, False),
        (pb.ENCODING_WHOLE, None, pb.PHASE_EVALUATE, False),
    ],
)
def test_it_trains_in_place_where_what_leaves_needs_no_base(
    tmp_path: Path,
    encoding: "pb.Encoding",
    clip: float | None,
    phase: "pb.Phase",
    in_place: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    bench = Bench(tmp_path, clip=clip)
    manifest = replace(MANIFEST, phase=phase, encoding=encoding)
    invited = Invited(manifest, digest_of(manifest_to_bytes(manifest)), JOB)
    bench.rounds._local_work._train(invited, cast("TrainingSupervisor", bench.task), None)
    bench.state.close()
    assert [work.in_place for work in bench.task.works] == [in_place]


def test_a_clipped_update_is_what_is_pushed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, clip=1.0)
    bench.rounds.take_part(invitation())
    assert bench.facts("sent")["clipped"] is True
    expected = np.array([1 + 0.5**0.5, 2 + 0.5**0.5], np.float32)
    assert bytes(bench.task.update) == expected.tobytes()
    bench.state.close()


def test_a_coordinator_cannot_make_an_owner_drop_its_work_with_its_word_alone(
    bench: Bench,
) -> None:
    bench.task.hold = True
    working = threading.Thread(target=lambda: bench.rounds.take_part(invitation()))
    working.start()
    assert bench.task.trains.wait(LONG)
    assert bench.stub.joined.acquire(timeout=LONG)
    forged = statement([], Ed25519PrivateKey.generate())
    for word in (outcome(None), outcome(forged)):
        bench.rounds.end(word)
        assert bench.stub.joined.acquire(timeout=LONG)  # it asks the aggregator at once
        assert not bench.task.cancelled.is_set()
    bench.stub.join_error = WrongState("the round has ended", pb.REASON_ROUND_ENDED)
    bench.rounds.end(outcome(None))
    assert bench.task.cancelled.wait(LONG)
    working.join(LONG)
    assert bench.stub.submitted == []
    assert bench.facts("not accepted")["reason"] == "ROUND_ENDED"


def test_a_good_statement_ends_the_work_at_once(bench: Bench) -> None:
    bench.task.hold = True
    working = threading.Thread(target=lambda: bench.rounds.take_part(invitation()))
    working.start()
    assert bench.task.trains.wait(LONG)
    bench.rounds.end(outcome(statement([])))
    assert bench.task.cancelled.wait(LONG)
    working.join(LONG)
    assert bench.stub.log == ["joined"]


def test_a_training_that_never_returns_is_ended_at_the_deadline_also_where_nobody_says_so(
    bench: Bench,
) -> None:
    bench.task.hold = True
    bench.stub.open_seconds = 1
    bench.rounds.take_part(invitation())
    assert bench.task.cancelled.is_set()
    assert bench.stub.log == ["joined"]
    assert bench.facts("not accepted")["reason"] == "DEADLINE"
    assert bench.ledger.past.budgets.failures("tumours") == 1


def test_a_round_that_ends_in_the_moment_before_its_training_begins_is_not_trained_for(
    bench: Bench,
) -> None:
    """To cancel has no effect yet, and a training that hangs would never be cancelled again."""
    bench.task.before = lambda: bench.rounds.end(outcome(statement([])))
    bench.rounds.take_part(invitation())
    assert bench.task.works == []
    assert bench.kinds() == ["joined", "not accepted"]


def test_a_coordinator_cannot_have_a_round_that_is_over_trained_for_by_an_old_rounds_statement(
    bench: Bench,
) -> None:
    body = pb.ReleaseStatement.FromString(statement([]).body)
    body.manifest_digest = b"o" * 32
    old = coordinator_pb2.Outcome(
        manifest_digest=body.manifest_digest,
        statement=sign(KEY, STATEMENT, body.SerializeToString()),
    )

    def both() -> None:
        bench.rounds.end(outcome(statement([])))
        bench.rounds.end(old)

    bench.task.before = both
    bench.rounds.take_part(invitation())
    assert bench.task.works == []
    assert bench.kinds() == ["joined", "not accepted"]


def test_a_push_to_an_aggregator_that_stays_away_ends_with_the_round(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cairn.transport.retry.IDLE_SECONDS", -1.0
    )  # every call has lasted for long
    away = Unavailable("no answer")
    bench.stub.submit_error = bench.stub.receipt_error = away
    bench.stub.open_seconds = 1
    bench.rounds.take_part(invitation())
    assert bench.stub.submitted == []
    assert "the round's deadline has passed" in bench.facts("not accepted")["why"]


def test_a_fetch_from_a_coordinator_that_stays_away_ends_with_the_round(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cairn.transport.retry.IDLE_SECONDS", -1.0
    )  # every call has lasted for long
    bench.coordinator.error = Unavailable("no answer")
    bench.stub.open_seconds = 1
    bench.rounds.take_part(invitation())
    assert bench.facts("declined")["reason"] == "FETCH_FAILED"
    assert "the round's deadline has passed" in bench.facts("declined")["why"]


def counted(bench: Bench) -> tuple[bool, str]:
    facts = bench.facts("released")
    return facts["counted"], facts.get("why", "")


def test_an_update_was_counted_where_the_statement_has_the_receipts_commitment(
    bench: Bench,
) -> None:
    bench.rounds.take_part(invitation())
    signed = statement([commitment_of(bench.stub.receipts[DIGEST])])
    bench.rounds.take_in(outcome(signed))
    bench.rounds.take_in(outcome(signed))  # told twice, recorded once
    assert counted(bench) == (True, "")
    kept = base64.b64decode(bench.facts("released")["statement"])
    assert kept == signed.SerializeToString()


def test_an_accepted_update_that_is_left_out_of_the_release_is_found_out(bench: Bench) -> None:
    bench.rounds.take_part(invitation())
    bench.rounds.take_in(outcome(statement([])))
    assert counted(bench) == (False, "the receipt's commitment is missing")
    assert events.AcceptedAndLeftOut("tumours", 4, DIGEST) in bench.events


def test_without_a_statement_the_owner_asks_the_aggregator_itself(bench: Bench) -> None:
    bench.rounds.take_part(invitation())
    bench.rounds.take_in(outcome(None))
    assert bench.stub.log[-1] == "asked for the statement"
    assert "released" not in bench.kinds()  # the round may still be open
    bench.clock.now += 60
    bench.stub.statements[DIGEST] = statement([commitment_of(bench.stub.receipts[DIGEST])])
    bench.rounds.take_in(outcome(None))
    assert counted(bench) == (True, "")


def test_a_round_that_ended_without_a_release_is_settled_and_not_asked_about_again(
    bench: Bench,
) -> None:
    bench.rounds.take_part(invitation())
    bench.stub.statement_error = NotFound("ended without a release", pb.REASON_ROUND_ENDED)
    for _ in range(2):
        bench.clock.now += 60
        bench.rounds.take_in(outcome(None))
    assert bench.facts("no release")["manifest_digest"] == DIGEST.hex()
    assert bench.stub.log.count("asked for the statement") == 1
    assert bench.ledger.past.unsettled == {}


@pytest.mark.parametrize(
    "error", [WrongState("it is open"), NotFound("unknown manifest"), Unavailable("not there")]
)
def test_any_other_answer_leaves_the_round_to_be_asked_about_at_the_next_event(
    bench: Bench, error: Exception
) -> None:
    bench.rounds.take_part(invitation())
    bench.stub.statement_error = error
    bench.rounds.take_in(outcome(None))
    assert bench.kinds() == ["joined", "sent", "receipt"]
    bench.clock.now += 60
    bench.stub.statement_error = None
    bench.stub.statements[DIGEST] = statement([commitment_of(bench.stub.receipts[DIGEST])])
    bench.rounds.take_part(invitation(replace(MANIFEST, round=5)))
    assert counted(bench) == (True, "")


def test_an_aggregator_that_cannot_be_reached_is_asked_again_and_ever_less_often(
    bench: Bench,
) -> None:
    """It was not asked before the next round, which may never come."""
    bench.rounds.take_part(invitation())
    bench.stub.statement_error = Unavailable("not there")
    bench.rounds.take_in(outcome(None))
    waits: list[float] = []
    while len(waits) < 7:
        waits.append(bench.outcomes.ask_in)
        bench.clock.now += bench.outcomes.ask_in
        bench.rounds.settle()
    assert waits == [6, 12, 24, 30, 30, 30, 30]
    bench.stub.statement_error = None
    bench.stub.statements[DIGEST] = statement([commitment_of(bench.stub.receipts[DIGEST])])
    bench.clock.now += 30
    bench.rounds.settle()
    assert counted(bench) == (True, "")
    assert bench.outcomes.ask_in == 3


def test_what_a_coordinator_says_does_not_flood_the_aggregator(bench: Bench) -> None:
    bench.rounds.take_part(invitation())
    asked_before = bench.stub.log.count("asked for the statement")
    for number in range(100):
        junk = coordinator_pb2.Outcome(manifest_digest=digest_of(bytes([number])))
        bench.rounds.take_in(junk)
        bench.rounds.take_in(outcome(None))
    assert bench.stub.log.count("asked for the statement") == asked_before + 1


def test_the_statement_and_the_head_behind_it_come_from_the_aggregator_itself(
    bench: Bench,
) -> None:
    bench.rounds.take_part(invitation())
    signed = statement([commitment_of(bench.stub.receipts[DIGEST])])
    bench.stub.statements[DIGEST] = signed
    bench.rounds.take_in(outcome(signed))
    assert counted(bench) == (True, "")
    assert bench.heads.noted[-1] == HEAD_NOW


@pytest.mark.parametrize("error", [Unavailable("not there"), WrongState("it is open")])
def test_where_the_aggregator_gives_no_statement_the_coordinators_verified_copy_is_recorded(
    bench: Bench, error: Exception
) -> None:
    bench.rounds.take_part(invitation())
    bench.stub.statement_error = error
    signed = statement([commitment_of(bench.stub.receipts[DIGEST])])
    bench.rounds.take_in(outcome(signed))
    assert counted(bench) == (True, "")


def test_after_a_copy_the_aggregator_is_asked_on_for_the_head_behind_the_release(
    bench: Bench,
) -> None:
    """A coordinator that waits with it until the aggregator is away must not end the questions."""
    bench.rounds.take_part(invitation())
    signed = statement([commitment_of(bench.stub.receipts[DIGEST])])
    bench.stub.statement_error = Unavailable("not there")
    bench.rounds.take_in(outcome(signed))
    bench.stub.statement_error = None
    bench.stub.statements[DIGEST] = signed
    known = len(bench.heads.noted)
    for _ in range(3):
        bench.clock.now += 60
        bench.rounds.settle()
    assert bench.heads.noted[known:] == [HEAD_NOW]
    assert bench.kinds().count("released") == 1


def test_an_aggregator_that_forgot_a_release_it_has_signed_is_loud(bench: Bench) -> None:
    bench.rounds.take_part(invitation())
    bench.stub.statement_error = Unavailable("not there")
    bench.rounds.take_in(outcome(statement([commitment_of(bench.stub.receipts[DIGEST])])))
    bench.stub.statement_error = NotFound("no release", pb.REASON_ROUND_ENDED)
    bench.clock.now += 60
    bench.rounds.settle()
    assert "no release" not in bench.kinds()
    (told,) = [event for event in bench.events if isinstance(event, events.EndNotTold)]
    assert told.error.reason == pb.REASON_ROLLED_BACK


def test_a_round_is_asked_about_until_it_has_ended_and_not_while_its_own_work_is_under_way(
    bench: Bench,
) -> None:
    asked: list[int] = []

    def in_the_middle() -> None:
        bench.rounds.settle()
        asked.append(questions(bench))

    bench.task.before = in_the_middle
    bench.rounds.take_part(invitation())
    later = replace(MANIFEST, round=5)
    bench.rounds.take_part(invitation(later))  # it asks about the first, at the beginning
    assert asked == [0, 1]
    for _ in range(4):
        bench.clock.now += bench.outcomes.ask_in
        bench.rounds.settle()
        bench.rounds.settle()  # too soon
    assert questions(bench) == 1 + 4 * 2
    assert bench.outcomes.awaits_an_end
    bench.stub.statement_error = NotFound("no release", pb.REASON_ROUND_ENDED)
    bench.clock.now += bench.outcomes.ask_in
    for _ in range(3):
        bench.rounds.settle()
    assert questions(bench) == 1 + 4 * 2 + 2
    assert bench.kinds()[-2:] == ["no release"] * 2
    assert not bench.outcomes.awaits_an_end


def test_an_aggregator_that_refuses_to_answer_is_asked_ever_less_often(bench: Bench) -> None:
    """It writes its refusals down."""
    bench.rounds.take_part(invitation())
    bench.stub.statement_error = CallerNotAllowed("not on the roster")
    for _ in range(100):
        bench.clock.now += bench.outcomes.ask_in
        bench.rounds.settle()
    assert questions(bench) <= 4 + 100 * 3 / 30
    assert not bench.outcomes.awaits_an_end


def questions(bench: Bench) -> int:
    return bench.stub.log.count("asked for the statement")


def sent_without_an_answer(bench: Bench) -> pb.Signed:
    """The update has left, its answer is lost and this owner is started anew; returns the lost receipt."""
    bench.rounds.take_part(invitation())
    receipt = bench.stub.receipts[DIGEST]
    past = bench.ledger.past
    past._receipts.clear()
    return receipt


def test_a_receipt_that_was_lost_is_asked_for_by_all_that_the_update_said_of_itself(
    bench: Bench,
) -> None:
    receipt = sent_without_an_answer(bench)
    bench.rounds.take_in(outcome(statement([commitment_of(receipt)])))
    assert counted(bench) == (True, "")
    (asked,) = bench.stub.asked
    said = aggregator_pb2.Receipt.FromString(receipt.body)
    assert (asked.payload_digest, asked.examples, asked.salt) == (
        said.payload_digest,
        said.examples,
        said.salt,
    )
    assert dict(asked.metrics) == dict(said.metrics) == {"loss": 0.5}
    assert bytes.fromhex(bench.facts("sent")["salt"]) == said.salt
    assert len(set(said.salt)) > 8  # chance gives 32 bytes fewer once in 10^30


def test_while_a_lost_receipt_cannot_be_asked_for_the_round_stays_unsettled(bench: Bench) -> None:
    receipt = sent_without_an_answer(bench)
    bench.stub.receipt_error = Unavailable("not there")
    bench.rounds.take_in(outcome(statement([commitment_of(receipt)])))
    assert "released" not in bench.kinds()
    bench.stub.receipt_error = None
    bench.clock.now += 60
    bench.stub.statements[DIGEST] = statement([commitment_of(receipt)])
    bench.rounds.settle()
    assert counted(bench) == (True, "")


COUNTED_UNSENT = events.CountedUnsent("tumours", 4, DIGEST)


@pytest.mark.parametrize("known_by", ["its ledger", "the aggregator"])
def test_a_release_that_counts_an_owner_that_sent_nothing_is_loud(
    bench: Bench, known_by: str
) -> None:
    if known_by == "its ledger":
        bench.records.declined(
            Invited(MANIFEST, DIGEST, JOB), Declined("no", pb.REASON_STALE_ROUND)
        )
    else:  # nobody invited it, and the aggregator says that it is in the cohort
        bench.stub.statements[DIGEST] = statement([])
    bench.rounds.take_in(outcome(statement([])))
    why = "the statement does not exclude this owner, which sent no update"
    assert counted(bench) == (False, why)
    assert COUNTED_UNSENT in bench.events


def test_a_release_of_other_owners_is_no_reason_for_alarm(bench: Bench) -> None:
    bench.stub.statement_error = CallerNotAllowed("only the round's cohort may ask")
    bench.rounds.take_in(outcome(statement([])))
    assert counted(bench) == (False, "this owner was not invited")
    assert COUNTED_UNSENT not in bench.events


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (WrongState("the aggregator's ledger is behind", pb.REASON_ROLLED_BACK), "FETCH_FAILED"),
        (Conflict("x"), "FETCH_FAILED"),
        (CairnError("x"), "FETCH_FAILED"),
        (InvalidMessage("another model"), "BASE_MISMATCH"),
    ],
)
def test_what_a_coordinator_answers_instead_of_the_base_is_a_decline_and_nothing_else(
    bench: Bench, error: Exception, reason: str
) -> None:
    bench.coordinator.error = error
    bench.rounds.take_part(invitation())
    assert bench.stub.log == ["joined", f"declined REASON_{reason}"]
    assert bench.kinds() == ["joined", "declined"]
    declined = bench.facts("declined")
    assert declined["reason"] == reason
    assert declined["why"].startswith("the base was not fetched from the coordinator: ")


def test_nothing_is_fetched_of_a_model_that_is_not_the_tasks_own(bench: Bench) -> None:
    bench.task.schema = Schema.of([*JOB.schema.tensors, TensorSpec("more", "F32", (1,))])
    bench.coordinator.error = AssertionError("it was fetched")
    bench.rounds.take_part(invitation())
    assert bench.stub.log == ["joined", "declined REASON_SCHEMA_MISMATCH"]
    assert bench.task.lent == 0
    assert "the task's model is not the job's: more" in bench.facts("declined")["why"]


def test_a_task_whose_model_cannot_be_built_is_no_failure_that_depends_on_data(
    bench: Bench,
) -> None:
    bench.task.model_error = TaskFailed("the task's file raised ZeroDivisionError")
    bench.rounds.take_part(invitation())
    assert bench.stub.log == ["joined", "declined REASON_SCHEMA_MISMATCH"]
    assert bench.facts("declined")["why"].endswith("raised ZeroDivisionError")


def test_a_job_that_the_manifest_does_not_name_is_not_even_parsed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    monkeypatch.setattr("owner_node.participation.job_spec_from_bytes", parsed.append)
    good = invitation()
    bench.rounds.take_part(
        coordinator_pb2.Invitation(manifest=good.manifest, job_spec=JOB_BYTES + b"\x7a\x00")
    )
    assert parsed == []
    assert "not the one the aggregator signed for" in bench.facts("refused")["why"]


def test_the_thread_that_takes_part_outlives_whatever_an_invitation_does_to_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_body: bytes) -> None:
        raise ValueError("unexpected")

    with monkeypatch.context() as patch:
        patch.setattr("owner_node.participation.job_spec_from_bytes", broken)
        bench.rounds.take_part(invitation())
    assert bench.facts("refused")["why"] == "the invitation could not be read"
    bench.rounds.take_part(invitation())
    assert bench.kinds() == ["refused", "joined", "sent", "receipt"]


def test_junk_neither_fills_the_ledger_nor_keeps_a_decline_out_of_it(bench: Bench) -> None:
    for number in range(1003):
        bench.records.refused(InvalidMessage(f"junk {number}"))
    bench.records.refused(InvalidMessage("junk 0"))  # said before
    assert bench.kinds() == ["refused"] * 1000
    invited = Invited(MANIFEST, DIGEST, JOB)
    for _ in range(2):
        bench.records.declined(invited, Declined("no", pb.REASON_SETTING_REFUSED))
        bench.records.left_out(invited, WrongState("ended", pb.REASON_ROLLED_BACK))
    bench.records.close()
    assert bench.kinds()[1000:] == ["declined", "not accepted", "refused", "refused"]
    signed, last = bench.entries()[-2:]
    assert signed.facts["why"] == "ended"
    assert last.facts["left_out"] == 3


def test_without_junk_nothing_is_said_to_be_left_out(bench: Bench) -> None:
    bench.records.refused(InvalidMessage("junk"))
    bench.records.close()
    assert bench.kinds() == ["refused"]


def test_a_lost_receipt_is_fetched_when_the_round_is_joined_again(bench: Bench) -> None:
    bench.rounds.take_part(invitation())
    bench.ledger.past._receipts.clear()  # as if its node had died before it came
    bench.rounds.take_part(invitation())
    assert len(bench.stub.submitted) == 1
    assert bench.kinds() == ["joined", "sent", "receipt", "receipt"]


def test_an_accepted_update_is_not_said_to_be_left_out_where_its_receipt_does_not_come(
    bench: Bench,
) -> None:
    receipt = sent_without_an_answer(bench)
    bench.stub.receipt_error = Unavailable("not there")
    bench.rounds.take_part(invitation())
    assert "not accepted" not in bench.kinds()
    bench.stub.receipt_error = None
    bench.rounds.take_in(outcome(statement([commitment_of(receipt)])))
    assert counted(bench) == (True, "")


@pytest.mark.parametrize(
    "change",
    [{"examples": 6}, {"metrics": {"loss": 0.25}}, {"owner": "eve"}, {"payload_digest": bytes(32)}],
)
def test_a_receipt_that_says_something_else_is_not_kept(
    bench: Bench, change: dict[str, Any]
) -> None:
    def changed(receipt: aggregator_pb2.Receipt) -> aggregator_pb2.Receipt:
        for name in change:
            receipt.ClearField(name)
        receipt.MergeFrom(aggregator_pb2.Receipt(**change))
        return receipt

    bench.stub.receipt = changed
    bench.rounds.take_part(invitation())
    assert "receipt" not in bench.kinds()
    assert "receipt" in bench.facts("refused")["why"]


def test_a_manifest_of_another_version_is_refused_with_both_versions(bench: Bench) -> None:
    message = pb.RoundManifest.FromString(manifest_to_bytes(MANIFEST))
    message.protocol, message.software = 77, "9.9.9"
    signed = sign(KEY, MANIFEST_TYPE, message.SerializeToString())
    for _ in range(3):
        bench.rounds.take_part(coordinator_pb2.Invitation(manifest=signed, job_spec=JOB_BYTES))
    why = bench.facts("refused")["why"]  # once, however often it is said
    assert f"speaks version {PROTOCOL}" in why
    assert "Cairn 9.9.9, which speaks version 77" in why
    told = [event for event in bench.events if isinstance(event, events.InvitationRefused)]
    assert [str(event.error) for event in told] == [why] * 3
    assert bench.stub.log == []


def test_a_forged_manifest_is_refused_and_recorded(bench: Bench) -> None:
    forged = sign(Ed25519PrivateKey.generate(), MANIFEST_TYPE, manifest_to_bytes(MANIFEST))
    bench.rounds.take_part(coordinator_pb2.Invitation(manifest=forged, job_spec=JOB_BYTES))
    assert "is not the pinned aggregator's" in bench.facts("refused")["why"]
    assert bench.stub.log == []


def test_an_update_that_the_aggregator_refuses_is_recorded_with_its_reason(bench: Bench) -> None:
    def refuse(_: aggregator_pb2.Receipt) -> aggregator_pb2.Receipt:
        raise UpdateRefused("too large", pb.REASON_MAGNITUDE_REFUSED)

    bench.stub.receipt = refuse
    bench.rounds.take_part(invitation())
    assert bench.facts("not accepted")["reason"] == "MAGNITUDE_REFUSED"


def next_round(number: int) -> coordinator_pb2.Invitation:
    return invitation(replace(MANIFEST, round=number))


def test_after_two_failures_the_task_is_declined_before_it_is_joined(bench: Bench) -> None:
    bench.task.update[:4] = np.float32(np.nan).tobytes()
    for number in (4, 5, 6, 7):
        bench.rounds.take_part(next_round(number))
    failed = ["joined", "declined REASON_NOT_COUNTED"]
    assert bench.stub.log == [*failed, *failed, *["declined REASON_FAILURES_SPENT"] * 2]
    reasons = [entry.facts["reason"] for entry in bench.entries() if entry.kind == "declined"]
    assert reasons == ["NON_FINITE"] * 2 + ["FAILURES_SPENT"] * 2


def test_a_refusal_whose_answer_was_lost_is_a_failure_all_the_same(bench: Bench) -> None:
    """The round has ended meanwhile: the aggregator is asked why there is no receipt."""
    bench.stub.submit_error = WrongState("the round has ended", pb.REASON_ROUND_ENDED)
    bench.rounds.take_part(invitation())
    assert bench.ledger.past.budgets.failures("tumours") == 0
    bench.stub.statement_error = NotFound("no release", pb.REASON_ROUND_ENDED)
    bench.stub.join_error = WrongState("it was refused", pb.REASON_MAGNITUDE_REFUSED)
    bench.rounds.settle()
    assert bench.facts("no release")["reason"] == "MAGNITUDE_REFUSED"
    assert bench.ledger.past.budgets.failures("tumours") == 1


def test_whether_it_was_refused_is_asked_again_where_the_aggregator_does_not_answer(
    bench: Bench,
) -> None:
    bench.stub.submit_error = WrongState("the round has ended", pb.REASON_ROUND_ENDED)
    bench.rounds.take_part(invitation())
    bench.stub.statement_error = NotFound("no release", pb.REASON_ROUND_ENDED)
    bench.stub.join_error = Unavailable("not there")
    bench.rounds.settle()
    assert "no release" not in bench.kinds()
    bench.stub.join_error = WrongState("ended", pb.REASON_ROUND_ENDED)
    bench.clock.now += 10
    bench.rounds.settle()
    assert "reason" not in bench.facts("no release")


def test_an_update_without_a_metric_of_the_first_is_a_failure(bench: Bench) -> None:
    bench.rounds.take_part(next_round(4))
    bench.task.metrics = {"patients": 17.0}
    bench.rounds.take_part(next_round(5))
    assert len(bench.stub.submitted) == 1
    assert bench.stub.log[-1] == "declined REASON_NOT_COUNTED"
    assert "its metric loss" in bench.facts("declined")["why"]


def test_a_metric_that_the_first_update_did_not_have_does_not_leave(bench: Bench) -> None:
    bench.task.metrics = {"patients": 17.0}
    bench.rounds.take_part(next_round(4))
    bench.task.metrics = {"patients": 17.0, "loss": 0.5}
    bench.rounds.take_part(next_round(5))
    assert [dict(header.metrics) for header in bench.stub.submitted] == [{}, {}]
    assert [e.facts["dropped_metrics"] for e in bench.entries() if e.kind == "sent"] == [
        ["patients"],
        ["loss", "patients"],
    ]


def test_a_rolled_back_aggregator_is_refused(bench: Bench) -> None:
    bench.stub.join_error = InvalidMessage("went back", pb.REASON_ROLLED_BACK)
    bench.rounds.take_part(invitation())
    assert bench.facts("refused")["why"] == "went back"
    assert bench.kinds() == ["refused"]
