"""An owner's ledger: durable, the same after a restart, and never silently another one."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cairn.errors import UsageError
from cairn.runtime.clock import Clock
from cairn.storage.database import StateDirectory
from cairn.v1 import round_pb2 as pb
from owner_node.invitation import Invited, LastRound
from owner_node.records.history import Pushed
from owner_node.records.ledger import NotRecorded, OwnerLedger, round_facts
from tests.unit.owner_node.test_policy import DIGEST, JOB, MANIFEST

INVITED = Invited(MANIFEST, DIGEST, JOB)
SENT: dict[str, Any] = {
    **round_facts(INVITED),
    "task": "tumours",
    "payload_digest": "ab" * 32,
    "examples": 5,
    "metrics": {"loss": 0.1},
    "salt": "cd" * 32,
}
RELEASED: dict[str, Any] = {**round_facts(INVITED), "release_digest": "cd" * 32, "counted": True}


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    opened = StateDirectory(tmp_path / "state", "owner.sqlite")
    yield opened
    opened.close()


def again(state: StateDirectory) -> OwnerLedger:
    return OwnerLedger(state, Clock())


def test_after_a_restart_it_knows_what_it_knew(state: StateDirectory) -> None:
    receipt = pb.Signed(type="t", body=b"b", signature=b"s")
    before = again(state)
    before.record("joined", {**round_facts(INVITED), "task": "tumours"})
    before.record("sent", SENT)
    text = base64.b64encode(receipt.SerializeToString()).decode()
    before.record("receipt", {"manifest_digest": DIGEST.hex(), "receipt": text})
    for ledger in (before, again(state)):
        past = ledger.past
        later = replace(INVITED, digest=b"n" * 32)
        known = past.known(later)
        assert known.last == LastRound(4, pb.PHASE_TRAIN, DIGEST)
        assert known.taken == 1
        assert past.known(INVITED).taken == 0  # the round itself does not count against itself
        assert past.sent(DIGEST) == [Pushed(b"\xab" * 32, 5, {"loss": 0.1}, b"\xcd" * 32)]
        assert past.receipt(DIGEST) == receipt
        assert list(past.unsettled) == [DIGEST]


def test_a_statement_settles_a_round_and_is_the_release_to_go_on_from(
    state: StateDirectory,
) -> None:
    before = again(state)
    before.record("sent", SENT)
    before.record("released", RELEASED)
    before.record("released", RELEASED | {"round": 2, "manifest_digest": "ee" * 32})
    for ledger in (before, again(state)):
        assert ledger.past.unsettled == {}
        assert ledger.past.is_released(DIGEST)
        assert ledger.past.known(INVITED).release == (4, b"\xcd" * 32)


def test_evaluations_are_counted_apart_from_trainings(state: StateDirectory) -> None:
    ledger = again(state)
    ledger.record("joined", {**round_facts(INVITED), "task": "tumours", "phase": "evaluate"})
    later = replace(INVITED, digest=b"n" * 32)
    assert ledger.past.known(later).taken == 0
    evaluation = replace(later, manifest=replace(MANIFEST, phase=pb.PHASE_EVALUATE))
    assert ledger.past.known(evaluation).taken == 1


def test_failures_are_the_same_after_a_restart_and_gone_after_a_reset(
    state: StateDirectory,
) -> None:
    before = again(state)
    before.record("joined", {**round_facts(INVITED), "task": "tumours"})
    before.record("declined", {**round_facts(INVITED), "reason": "TASK_FAILED", "why": "x"})
    for ledger in (before, again(state)):
        assert ledger.past.known(INVITED).failures == 1
    before.record("reset", {"task": "tumours", "failures": 1})
    for ledger in (before, again(state)):
        assert ledger.past.known(INVITED).failures == 0


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE ledger SET body = CAST(replace(body, '5', '6') AS BLOB) WHERE number = 2",
        "DELETE FROM ledger WHERE number = 1",
        "UPDATE ledger SET kind = 'declined' WHERE number = 2",
    ],
)
def test_a_ledger_that_was_changed_is_named_and_not_used(
    state: StateDirectory, change: str
) -> None:
    ledger = again(state)
    ledger.record("refused", {"why": "x"})
    ledger.record("sent", SENT)
    state.db.execute(change)
    with pytest.raises(UsageError, match=r"state was tampered with or is damaged: entry [12]"):
        again(state)


def test_a_full_disk_is_one_sentence_and_no_entry(state: StateDirectory) -> None:
    ledger = again(state)
    ledger.record("refused", {"why": "x"})
    pages = state.db.execute("PRAGMA page_count").fetchone()[0]
    state.db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(NotRecorded, match=r"cannot be written, so nothing is sent: .*full"):
        ledger.record("sent", SENT | {"metrics": {"m" * 100_000: 1.0}})
    assert again(state).past.sent(DIGEST) == ledger.past.sent(DIGEST) == []
