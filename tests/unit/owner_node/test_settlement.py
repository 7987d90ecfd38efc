"""How an owner finds out what became of its rounds, whoever says what about them."""

import base64
from dataclasses import replace
from itertools import pairwise

import pytest

from cairn.errors import (
    CallerNotAllowed,
    NotFound,
    Unavailable,
    WrongState,
)
from cairn.protocol.messages import (
    digest_of,
)
from cairn.protocol.statements import STATEMENT, commitment_of, sign
from cairn.v1 import aggregator_pb2, coordinator_pb2
from cairn.v1 import round_pb2 as pb
from owner_node import events
from owner_node.invitation import Declined, Invited
from tests.unit.owner_node.round_bench import (
    DIGEST,
    HEAD_NOW,
    KEY,
    Bench,
    counted,
    invitation,
    outcome,
    questions,
    sent_without_an_answer,
    statement,
)
from tests.unit.owner_node.test_policy import JOB, MANIFEST


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
    bench.clock.now += 60
    bench.rounds.settle()
    assert questions(bench) == 1


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


def test_each_refusal_to_answer_doubles_the_pause_up_to_half_a_minute(bench: Bench) -> None:
    bench.rounds.take_part(invitation())
    bench.stub.statement_error = CallerNotAllowed("not on the roster")
    asked_at: list[int] = []
    for second in range(140):
        before = questions(bench)
        bench.rounds.settle()
        asked_at += [second] * (questions(bench) - before)
        bench.clock.now += 1
    assert [later - earlier for earlier, later in pairwise(asked_at)] == [3, 6, 12, 24, 30, 30, 30]


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
        bench.stub.statement_error = CallerNotAllowed("the aggregator denies it")
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


def test_the_statement_of_another_federation_proves_nothing(bench: Bench) -> None:
    bench.rounds.take_part(invitation())
    body = pb.ReleaseStatement.FromString(statement([]).body)
    body.federation = "banks"
    signed = sign(KEY, STATEMENT, body.SerializeToString())
    assert not bench.outcomes.is_proved(outcome(signed))
    bench.rounds.take_in(outcome(signed))
    assert "released" not in bench.kinds()
    (told,) = [event for event in bench.events if isinstance(event, events.StatementForged)]
    assert str(told.error) == "the release statement is another federation's"


def test_a_coordinators_word_that_a_round_ended_is_told_and_proves_nothing(bench: Bench) -> None:
    assert not bench.outcomes.is_proved(outcome(None))
    assert bench.events == [events.GivenUp(pb.REASON_ABORTED)]


def test_an_end_that_cannot_be_recorded_is_asked_about_again_ever_later(bench: Bench) -> None:
    """The aggregator has answered well: it is not to be flooded because this disk is full."""
    bench.rounds.take_part(invitation())
    bench.stub.statements[DIGEST] = statement([commitment_of(bench.stub.receipts[DIGEST])])
    bench.state.db.execute("PRAGMA query_only = ON")
    bench.rounds.settle()
    assert [type(event) for event in bench.events[-1:]] == [events.EndNotRecorded]
    bench.clock.now += 3
    bench.rounds.settle()
    bench.clock.now += 3
    bench.rounds.settle()  # too soon: twice as long was to pass
    assert questions(bench) == 2
    bench.state.db.execute("PRAGMA query_only = OFF")
    bench.clock.now += 3
    bench.rounds.settle()
    assert questions(bench) == 3
    assert counted(bench) == (True, "")


def test_a_statement_that_excludes_this_owner_says_why_it_was_not_counted(bench: Bench) -> None:
    body = pb.ReleaseStatement.FromString(statement([]).body)
    body.exclusions.add(owner="bob", reason=pb.REASON_LEASE_EXPIRED)
    bench.rounds.take_in(outcome(sign(KEY, STATEMENT, body.SerializeToString())))
    assert bench.facts("released")["reason"] == "LEASE_EXPIRED"
    assert bench.events == [events.Released("tumours", 4, 3, "LEASE_EXPIRED")]


def test_without_a_receipt_an_update_that_left_is_not_said_to_be_counted(bench: Bench) -> None:
    """Nor that somebody else sent it: this owner did, and its answer came from nobody."""
    receipt = sent_without_an_answer(bench)
    bench.stub.receipts.clear()
    bench.rounds.take_in(outcome(statement([commitment_of(receipt)])))
    assert counted(bench) == (False, "this owner holds no receipt")
    assert events.CountedUnsent("tumours", 4, DIGEST) not in bench.events


def test_an_end_is_awaited_only_while_the_aggregator_is_reached_and_says_that_it_is_open(
    bench: Bench,
) -> None:
    bench.rounds.take_part(invitation())
    awaited = [bench.outcomes.awaits_an_end]  # nobody was asked yet
    bench.rounds.take_part(invitation(replace(MANIFEST, round=5)))
    bench.rounds.settle()
    awaited.append(bench.outcomes.awaits_an_end)
    bench.stub.statement_error = Unavailable("not there")
    bench.clock.now += 60
    bench.rounds.settle()  # about the first; the other was open when it was last asked about
    awaited.append(bench.outcomes.awaits_an_end)
    assert awaited == [False, True, False]
