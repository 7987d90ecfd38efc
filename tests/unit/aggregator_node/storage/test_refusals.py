"""What is kept of refusals, on a clock that the test sets."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregator_node.storage.refusals import RefusalLog
from aggregator_node.storage.store import Store
from cairn.errors import LimitExceeded, UpdateRefused
from cairn.identity.names import NodeName, Role
from cairn.runtime.clock import Clock
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


def callers(store: Store) -> list[str]:
    return [entry["caller"].rpartition("/")[2] for entry in recorded(store)]


def test_a_refusal_is_recorded_by_its_caller_and_reason_without_its_sentence(
    store: Store, clock: SetClock
) -> None:
    error = UpdateRefused("tensor w has a value that is NaN", pb.REASON_NON_FINITE)
    RefusalLog(store, clock).refused(ALICE, METHOD, error)
    RefusalLog(store, clock).refused(None, METHOD, LimitExceeded("x"))
    first, second = recorded(store)
    del first["unix_ms"]
    assert first == {
        "caller": "spiffe://clinics/owner/alice",
        "method": METHOD,
        "error": "UpdateRefused",
        "reason": "NON_FINITE",
    }
    assert second["caller"] == "unknown"


def test_the_same_refusal_is_written_once_an_hour_and_then_counted(
    store: Store, clock: SetClock
) -> None:
    refusals = RefusalLog(store, clock)
    for _ in range(100):
        refusals.refused(ALICE, METHOD, LimitExceeded("x"))
    refusals.refused(BOB, METHOD, LimitExceeded("x"))
    refusals.refused(ALICE, METHOD, UpdateRefused("x", pb.REASON_NON_FINITE))
    assert callers(store) == ["alice", "bob", "alice"]
    clock.now += 3599.9
    refusals.refused(ALICE, METHOD, LimitExceeded("x"))
    refusals.count()
    assert len(recorded(store)) == 3
    clock.now += 0.1
    refusals.refused(ALICE, METHOD, LimitExceeded("x"))
    *_, count, entry = recorded(store)
    assert (count["caller"], count["count"]) == (entry["caller"], 100)
    refusals.count(at_end=True)
    assert len(recorded(store)) == 5, "nothing was left out since"


def test_one_caller_has_sixty_entries_an_hour_and_cannot_take_anothers(
    store: Store, clock: SetClock
) -> None:
    refusals = RefusalLog(store, clock)
    for number in range(100):
        refusals.refused(ALICE, f"{METHOD}{number}", LimitExceeded("x"))
    refusals.refused(BOB, METHOD, LimitExceeded("x"))
    assert callers(store) == ["alice"] * 60 + ["bob"]
    refusals.count(at_end=True)
    last = recorded(store)[-1]
    assert (last["caller"], last["count"]) == (ALICE.uri, 40)


def test_all_callers_together_have_three_hundred_entries_an_hour_and_the_rest_is_counted(
    store: Store, clock: SetClock
) -> None:
    refusals = RefusalLog(store, clock)
    for number in range(1000):
        for _ in range(2):
            node = NodeName("clinics", Role.OWNER, f"owner-{number}")
            refusals.refused(node, METHOD, LimitExceeded("x"))
    assert len(recorded(store)) == 300
    refusals.count(at_end=True)
    counts = [entry["count"] for entry in recorded(store)[300:]]
    assert len(counts) == 301
    assert recorded(store)[-1]["caller"] == "others"
    assert 300 + sum(counts) == 2000
    # A day of this is less than 6 MB.
    select = "SELECT sum(length(kind) + length(body) + length(head)) FROM refusals"
    assert store._db.execute(select).fetchone()[0] * 24 < 4e6


def test_what_cannot_be_recorded_is_refused_all_the_same(store: Store, clock: SetClock) -> None:
    store._db.execute("DROP TABLE refusals")
    RefusalLog(store, clock).refused(ALICE, METHOD, LimitExceeded("x"))
