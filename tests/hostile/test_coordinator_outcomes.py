"""What a coordinator says of a round's end, and old manifests: nothing counts that the aggregator did not sign.

Alice is a real process whose training the test holds with a FIFO beside its data.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cairn.protocol.aggregation import Aggregation, aggregation_to_pb
from cairn.protocol.statements import STATEMENT, sign
from cairn.v1 import coordinator_pb2
from cairn.v1 import round_pb2 as pb
from tests.hostile.stage import COHORT, Stage, fresh_base, manifest, signed
from tests.scenarios.processes import until
from tests.service.network import Job, OpenRound

HEARD = {
    "aborted": "the coordinator gave up a round",
    "released": "the coordinator gave up a round",
    "finished": "the job has ended",
}


@contextmanager
def training(stage: Stage, opened: OpenRound) -> Iterator[None]:
    """Invite alice, and hold its training as long as the test is inside."""
    gate = stage.data / f"round-{opened.manifest.round}"
    os.mkfifo(gate)

    def reached() -> int:
        with suppress(OSError):  # as long as nobody reads
            return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
        return 0

    stage.invite(opened.signed, opened.job.body)
    descriptor = until(reached, "alice trains")
    gate.unlink()
    try:
        yield
    finally:
        os.close(descriptor)


def opened_round(stage: Stage, job: Job | None = None, number: int = 1) -> OpenRound:
    base = fresh_base()
    opened = (job or stage.job(deadline=30)).open(COHORT, base, number)
    stage.coordinator.models[opened.manifest.base_digest] = base
    return opened


def others_push(opened: OpenRound) -> None:
    for owner in ("bob", "carol"):
        opened.join(owner)
        opened.push(owner, bytes(12))


def released_entry(stage: Stage, opened: OpenRound) -> dict[str, Any]:
    """What alice has written down of the round's release."""

    def found() -> list[dict[str, Any]]:
        digest = opened.digest.hex()
        entries = stage.entries("released")
        return [e.facts for e in entries if e.facts["manifest_digest"] == digest]

    (facts,) = until(found, "alice knows how the round ended")
    return facts


@pytest.mark.parametrize("said", ["aborted", "released", "forged", "another round's", "finished"])
def test_an_end_that_the_aggregator_did_not_sign_does_not_make_an_owner_drop_its_work(
    stage: Stage, said: str
) -> None:
    opened = opened_round(stage)
    others_push(opened)
    with training(stage, opened):
        event = HEARD.get(said, "the coordinator sent a statement that is not the aggregator's")
        known = len(stage.alice.events(event))
        _claim(stage, opened, said)
        until(lambda: len(stage.alice.events(event)) > known, "alice hears it")
    ended = opened.ends()
    assert (ended.statement.contributors, ended.exclusions) == (3, {})
    stage.tell(opened.digest, statement=opened.collect()[0])
    facts = released_entry(stage, opened)
    assert (facts["counted"], facts["contributors"]) == (True, 3)


def _statement(opened: OpenRound, **changes: Any) -> pb.ReleaseStatement:
    """A statement that could be that of the round."""
    values: dict[str, Any] = {
        "manifest_digest": opened.digest,
        "federation": opened.manifest.federation,
        "job": opened.manifest.job,
        "round": opened.manifest.round,
        "phase": opened.manifest.phase,
        "release_digest": bytes(32),
        "base_digest": opened.manifest.base_digest,
        "contributors": 3,
        "aggregation": aggregation_to_pb(Aggregation()),
        "weighting": opened.manifest.weighting,
        "encoding": opened.manifest.encoding,
        "ledger_head": bytes(32),
        "floor": 3,
        "commitments": [bytes([number]) * 32 for number in range(3)],
    }
    return pb.ReleaseStatement(**values | changes)


def _claim(stage: Stage, opened: OpenRound, said: str) -> None:
    body = _statement(opened).SerializeToString()
    other = _statement(opened, manifest_digest=bytes(32)).SerializeToString()
    match said:
        case "aborted":
            stage.tell(opened.digest, reason=pb.REASON_ABORTED)
        case "released":
            stage.tell(opened.digest)
        case "forged":
            forged = sign(Ed25519PrivateKey.generate(), STATEMENT, body)
            stage.tell(opened.digest, statement=forged)
        case "another round's":
            stage.tell(opened.digest, statement=sign(stage.key, STATEMENT, other))
        case "finished":
            finished = coordinator_pb2.Finished(job=opened.manifest.job, completed=True)
            event = coordinator_pb2.AttendResponse(finished=finished)
            stage.coordinator.says["alice"].put(event)


def test_a_forged_statement_is_not_written_down_as_a_release(stage: Stage) -> None:
    opened = opened_round(stage)
    others_push(opened)
    with training(stage, opened):
        forged = _statement(opened, contributors=4, commitments=[bytes([n]) * 32 for n in range(4)])
        body = forged.SerializeToString()
        stage.tell(opened.digest, statement=sign(Ed25519PrivateKey.generate(), STATEMENT, body))
    opened.ends()
    stage.tell(opened.digest)  # without a statement alice asks the aggregator itself
    facts = released_entry(stage, opened)
    assert (facts["counted"], facts["contributors"]) == (True, 3)
    assert facts["release_digest"] != bytes(32).hex()


def test_an_update_that_was_accepted_and_is_not_in_the_statement_is_written_down_as_not_counted(
    stage: Stage,
) -> None:
    """An aggregator that lies: its own key signs a statement without alice's commitment."""
    opened = opened_round(stage)
    with training(stage, opened):
        pass
    until(lambda: _has_receipt(stage, opened), "alice's update is accepted")
    lie = sign(stage.key, STATEMENT, _statement(opened).SerializeToString())
    stage.tell(opened.digest, statement=lie)
    facts = released_entry(stage, opened)
    assert (facts["counted"], facts["why"]) == (False, "the receipt's commitment is missing")
    words = "THE AGGREGATOR ACCEPTED AN UPDATE AND LEFT IT OUT OF ITS RELEASE"
    assert [e["manifest"] for e in stage.alice.events(words)] == [opened.digest.hex()]


def _has_receipt(stage: Stage, opened: OpenRound) -> bool:
    digest = opened.digest.hex()
    return digest in [entry.facts["manifest_digest"] for entry in stage.entries("receipt")]


def test_an_old_manifest_and_a_second_one_of_the_same_round_are_stale(stage: Stage) -> None:
    job = stage.job()
    first = opened_round(stage, job)
    others_push(first)
    with training(stage, first):
        pass
    release = first.ends().payload
    second = job.open(COHORT, release, number=2)
    stage.coordinator.models[second.manifest.base_digest] = release
    with training(stage, second):
        twin = manifest(
            stage,
            job,
            release,
            round=2,
            previous_release_digest=second.manifest.base_digest,
            nonce=bytes([1]) * 32,
        )
    until(lambda: _has_receipt(stage, second), "alice's update is accepted")
    stage.declines(first.signed, job.body, "STALE_ROUND")
    stage.declines(signed(stage, twin), job.body, "STALE_ROUND")
    sent = [entry.facts["round"] for entry in stage.entries("sent") if _is_of(entry.facts, job)]
    assert sent == [1, 2]


def _is_of(facts: dict[str, Any], job: Job) -> bool:
    return bool(facts["job"] == job.spec.name)


def test_a_chain_that_begins_again_after_a_release_is_declined(stage: Stage) -> None:
    job = stage.job()
    first = opened_round(stage, job)
    others_push(first)
    with training(stage, first):
        pass
    release = first.ends().payload
    stage.tell(first.digest, statement=first.collect()[0])
    released_entry(stage, first)
    another = manifest(stage, job, fresh_base(), round=2)
    stage.declines(signed(stage, another), job.body, "CHAIN_BROKEN")
    digest = job.spec.schema.digest(fresh_base())
    changes = {"base_digest": digest, "previous_release_digest": digest}
    trap = manifest(stage, job, release, round=2, **changes)
    stage.declines(signed(stage, trap), job.body, "CHAIN_BROKEN")


def test_a_stale_manifest_is_stale_after_a_restart_as_well(stage: Stage) -> None:
    job = stage.job()
    opened = opened_round(stage, job)
    others_push(opened)
    with training(stage, opened):
        pass
    opened.ends()
    until(lambda: _has_receipt(stage, opened), "alice's update is accepted")
    stage.alice.kill()
    stage.alice = stage.start_alice()
    twin = manifest(stage, job, fresh_base(), nonce=bytes([2]) * 32)
    stage.declines(signed(stage, twin), job.body, "STALE_ROUND")


def test_a_base_that_cannot_be_fetched_costs_the_owner_its_place_and_nothing_else(
    stage: Stage,
) -> None:
    """The coordinator announces a model and fails whenever it is asked for it."""
    opened = stage.job(deadline=5).open(COHORT, fresh_base())
    others_push(opened)
    stage.invite(opened.signed, opened.job.body)
    ended = opened.ends()
    assert (ended.reason, set(ended.exclusions)) == ("BELOW_FLOOR", {"alice"})
    with pytest.raises(grpc.RpcError):
        opened.collect()
