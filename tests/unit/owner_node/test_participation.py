"""A whole round of an owner, with a coordinator, an aggregator and a training that the test plays."""

import threading
from dataclasses import replace
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
    Unavailable,
    UpdateRefused,
    WrongState,
)
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.messages import (
    PROTOCOL,
    digest_of,
    manifest_to_bytes,
)
from cairn.protocol.statements import MANIFEST as MANIFEST_TYPE
from cairn.protocol.statements import STATEMENT, commitment_of, sign
from cairn.tasks.loader import TaskFailed
from cairn.v1 import aggregator_pb2, coordinator_pb2
from cairn.v1 import round_pb2 as pb
from owner_node import events
from owner_node.invitation import Declined, Invited
from owner_node.local_work import Progress
from owner_node.records.ledger import NotRecorded
from owner_node.training.supervisor import TrainingSupervisor
from tests.unit.owner_node.round_bench import (
    DIGEST,
    JOB_BYTES,
    KEY,
    LONG,
    Bench,
    counted,
    invitation,
    invitation_of_gradients,
    outcome,
    sent_without_an_answer,
    statement,
)
from tests.unit.owner_node.test_policy import JOB, MANIFEST


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
    assert sent["clipped"] is False
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
    progress = Progress(lambda: False, lambda: None)
    process = cast("TrainingSupervisor", bench.task)
    order = bench.rounds._local_work._order(invited, process, progress, None)
    bench.state.close()
    assert order.in_place == in_place


def test_a_clipped_update_is_what_is_pushed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, clip=1.0)
    bench.rounds.take_part(invitation())
    assert bench.facts("sent")["clipped"] is True
    expected = np.array([1 + 0.5**0.5, 2 + 0.5**0.5], np.float32)
    assert bytes(bench.task.update) == expected.tobytes()
    bench.state.close()


def test_a_gradient_is_clipped_to_its_own_length_and_needs_no_base(tmp_path: Path) -> None:
    bench = Bench(tmp_path, clip=1.0)
    bench.task.gives_gradients = True
    bench.rounds.take_part(invitation_of_gradients())
    assert [(work.gradients, work.in_place) for work in bench.task.works] == [(True, True)]
    assert bench.facts("sent")["clipped"] is True
    expected = np.array([0.6, 0.8], np.float32)
    np.testing.assert_allclose(np.frombuffer(bench.task.update, np.float32), expected, rtol=1e-7)
    bench.state.close()


def test_a_job_of_gradients_is_declined_by_a_task_without_them_before_anything_is_fetched(
    bench: Bench,
) -> None:
    bench.coordinator.error = AssertionError("it was fetched")
    bench.rounds.take_part(invitation_of_gradients())
    assert bench.stub.log == ["joined", "declined REASON_JOB_REFUSED"]
    assert (bench.task.lent, bench.task.works) == (0, [])
    assert bench.facts("declined")["why"] == (
        "the job asks for gradients and the task has no gradients function;"
        " pass one: cairn.Task(..., gradients=gradients)"
    )


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


def test_an_error_of_no_usual_kind_leaves_the_owner_out_and_is_told(bench: Bench) -> None:
    bench.stub.join_error = CallerNotAllowed("not on the roster", pb.REASON_UNKNOWN_OWNER)
    bench.rounds.take_part(invitation())
    assert bench.kinds() == ["not accepted"]
    assert bench.facts("not accepted")["reason"] == "UNKNOWN_OWNER"
    failed = [event for event in bench.events if isinstance(event, events.RoundFailed)]
    assert [(event.job, event.round, str(event.error)) for event in failed] == [
        ("tumours", 4, "not on the roster")
    ]


def test_a_mistake_in_the_code_of_a_round_is_a_failure_and_the_next_round_is_taken_part_in(
    bench: Bench,
) -> None:
    bug = ZeroDivisionError("a bug")

    def crash() -> None:
        raise bug

    bench.task.before = crash
    bench.rounds.take_part(invitation())
    assert events.RoundCrashed("tumours", 4, bug) in bench.events
    assert bench.facts("declined")["reason"] == "TASK_FAILED"
    assert bench.stub.log == ["joined", "declined REASON_NOT_COUNTED"]
    bench.task.before = lambda: None
    bench.rounds.take_part(next_round(5))
    assert bench.stub.log[-2:] == ["joined", "submitted"]


def test_a_node_that_is_told_to_stop_says_so_once_and_ends_its_training(bench: Bench) -> None:
    bench.task.hold = True
    worker = threading.Thread(target=lambda: bench.rounds.take_part(invitation()))
    worker.start()
    assert bench.task.trains.wait(LONG)
    bench.stopping.set()
    bench.rounds.leave()
    worker.join(LONG)
    assert not worker.is_alive()
    assert bench.task.cancelled.is_set()
    assert bench.stub.log == ["joined", "declined REASON_STOPPING"]
    assert [entry.facts["reason"] for entry in bench.entries() if entry.kind == "declined"] == [
        "STOPPING"
    ]


def test_a_node_that_is_told_to_stop_between_rounds_says_nothing(bench: Bench) -> None:
    bench.stopping.set()
    bench.rounds.leave()
    assert (bench.stub.log, bench.kinds()) == ([], [])


def test_a_node_that_is_told_to_stop_while_it_fetches_does_not_train(bench: Bench) -> None:
    fetch = bench.coordinator.fetch

    def stopped(*whats: Any) -> None:
        fetch(*whats)
        bench.stopping.set()

    bench.coordinator.fetch = stopped  # type: ignore[method-assign, assignment]  # the signal comes here
    bench.rounds.take_part(invitation())
    assert bench.task.works == []
    assert bench.kinds() == ["joined"]


def test_a_decline_that_does_not_arrive_is_told_and_the_round_is_over_all_the_same(
    bench: Bench,
) -> None:
    refusal = WrongState("the round has ended", pb.REASON_ROUND_ENDED)

    def refuse(*_: object) -> None:
        raise refusal

    bench.aggregator.decline = refuse  # type: ignore[method-assign, assignment]  # the aggregator's answer
    bench.task.model_error = TaskFailed("no model")
    bench.rounds.take_part(invitation())
    assert events.NotDeclined(refusal) in bench.events
    assert bench.kinds() == ["joined", "declined"]


def test_an_end_that_cannot_be_recorded_is_told(bench: Bench) -> None:
    full = NotRecorded("the disk is full")

    def fail(*_: object) -> None:
        raise full

    bench.outcomes.settle = fail  # type: ignore[method-assign, assignment]  # the disk fails here
    bench.rounds.settle()
    assert bench.events == [events.EndNotRecorded(full)]


def test_an_update_of_before_a_restart_is_pushed_again_as_it_was_and_not_trained_anew(
    bench: Bench,
) -> None:
    bench.rounds.take_part(invitation())
    first = bench.stub.submitted[0]
    bench.stub.receipts.clear()  # the aggregator has lost it with its memory
    bench.ledger.past._receipts.clear()
    bench.rounds.take_part(invitation())
    assert len(bench.task.works) == 1
    assert bench.stub.submitted[1] == first
    assert events.PushedAgain("tumours", 4) in bench.events
    assert bench.kinds() == ["joined", "sent", "receipt", "sent again", "receipt"]


def test_an_update_that_is_not_on_the_disk_any_more_is_not_replaced_by_another(
    bench: Bench,
) -> None:
    bench.rounds.take_part(invitation())
    bench.stub.receipts.clear()
    bench.ledger.past._receipts.clear()
    bench.kept.remove(DIGEST)
    bench.rounds.take_part(invitation())
    assert len(bench.task.works) == len(bench.stub.submitted) == 1
    assert bench.facts("declined")["reason"] == "UPDATE_LOST"
