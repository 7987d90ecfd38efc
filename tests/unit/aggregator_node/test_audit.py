"""What is kept of refusals, on a clock that the test sets."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregator_node.audit import Audit
from aggregator_node.store import Store
from cairn.clock import Clock
from cairn.errors import TooMuch, UpdateRefused
from cairn.identity import NodeName, Role
from cairn.v1 import round_pb2 as pb

ALICE, BOB = (NodeName("clinics", Role.OWNER, name) for name in ("alice", "bob"))
METHOD = "/cairn.v1.IntakeService/SubmitUpdate"


class SetClock(Clock):
    """A clock that stands where the test puts it."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def store(tmp_path: Path, clock: SetClock) -> Iterator[Store]:
    store = Store(tmp_path / "state", clock)
    yield store
    store.close()


def recorded(store: Store) -> list[dict[str, Any]]:
    rows = store._db.execute("SELECT body FROM refusals ORDER BY number")
    return [json.loads(body) for (body,) in rows]


def test_a_refusal_is_recorded_by_its_caller_and_reason_without_its_sentence(
    store: Store, clock: SetClock
) -> None:
    error = UpdateRefused("tensor w has a value that is NaN", pb.REASON_NON_FINITE)
    Audit(store, clock).refused(ALICE, METHOD, error)
    Audit(store, clock).refused(None, METHOD, TooMuch("x"))
    first, second = recorded(store)
    del first["unix_ms"]
    assert first == {
        "caller": "spiffe://clinics/owner/alice",
        "method": METHOD,
        "error": "UpdateRefused",
        "reason": "NON_FINITE",
    }
    assert second["caller"] == "unknown"


def test_one_caller_has_sixty_entries_a_minute_and_the_next_tells_how_many_were_left_out(
    store: Store, clock: SetClock
) -> None:
    audit = Audit(store, clock)
    for _ in range(100):
        audit.refused(ALICE, METHOD, TooMuch("x"))
    audit.refused(BOB, METHOD, TooMuch("x"))
    assert [entry["caller"][-5:] for entry in recorded(store)] == ["alice"] * 60 + ["r/bob"]
    clock.now += 59.9
    audit.refused(ALICE, METHOD, TooMuch("x"))
    assert len(recorded(store)) == 61
    clock.now += 0.1
    audit.refused(ALICE, METHOD, TooMuch("x"))
    audit.refused(ALICE, METHOD, TooMuch("x"))
    *_, first, second = recorded(store)
    assert first["left_out_before"] == 41
    assert "left_out_before" not in second


def test_what_cannot_be_recorded_is_refused_all_the_same(store: Store, clock: SetClock) -> None:
    store._db.execute("DROP TABLE refusals")
    Audit(store, clock).refused(ALICE, METHOD, TooMuch("x"))
