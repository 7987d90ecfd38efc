"""What outlives the aggregator's process."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from aggregator_node.storage.rows import JobRow, Progress, RoundRow
from aggregator_node.storage.store import Store
from cairn.errors import NotFound, UsageError
from cairn.runtime.clock import Clock
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb


class SetClock(Clock):
    """A clock that stands where the test puts it."""

    ms = 1_700_000_000_000

    def unix_ms(self) -> int:
        return self.ms


SPEC = b"spec"
STATE_DIGEST = b"s" * 32


def a_round(number: int, **changes: object) -> RoundRow:
    phase = changes.get("phase", pb.PHASE_TRAIN)
    manifest = pb.RoundManifest(job="tumours", round=number, phase=phase)  # type: ignore[arg-type]  # the changes are the test's
    body = manifest.SerializeToString()
    values: dict[str, object] = {
        "manifest_digest": sha256(body).digest(),
        "job": "tumours",
        "number": number,
        "phase": phase,
        "manifest": pb.Signed(body=body).SerializeToString(),
    }
    return RoundRow(**{**values, **changes})  # type: ignore[arg-type]  # the changes are the test's


def statement_of(number: int) -> bytes:
    digest = a_round(number).manifest_digest
    return pb.ReleaseStatement(
        manifest_digest=digest,
        release_digest=bytes([number]) * 32,
        exclusions=[pb.Exclusion(owner="carol", reason=pb.REASON_LEASE_EXPIRED)],
    ).SerializeToString()


def released(number: int, **changes: object) -> RoundRow:
    values: dict[str, object] = {
        "state": aggregator_pb2.ROUND_STATE_RELEASED,
        "statement": pb.Signed(body=statement_of(number)).SerializeToString(),
        "release_digest": bytes([number]) * 32,
        "exclusions": (("carol", pb.REASON_LEASE_EXPIRED),),
    }
    return a_round(number, **{**values, **changes})


def record(store: Store) -> None:
    """A job, a released round and an open one, in the ledger and in the rows."""
    job = {"job": "tumours", "job_digest": sha256(SPEC).hexdigest(), "coordinator": "coordinator"}
    store.append("job", job)
    for number in (1, 2):
        store.append("open", {"manifest_digest": a_round(number).manifest_digest.hex()})
    store.append(
        "release",
        {
            "manifest_digest": a_round(1).manifest_digest.hex(),
            "statement_digest": sha256(statement_of(1)).hexdigest(),
            "optimizer_digest": STATE_DIGEST.hex(),
        },
    )
    store.save_round(released(1))
    store.save_round(a_round(2))
    store.save_optimizer_digest(a_round(1).manifest_digest, STATE_DIGEST)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "state", SetClock())
    store.add_job(JobRow("tumours", "coordinator", SPEC))
    return store


def test_what_was_stored_is_there_after_a_restart(store: Store, tmp_path: Path) -> None:
    record(store)
    store.close()

    again = Store(tmp_path / "state", SetClock())

    assert again.job("tumours") == JobRow("tumours", "coordinator", b"spec")
    assert again.round(released(1).manifest_digest) == released(1)
    assert again.open_rounds() == [a_round(2)]
    assert again.optimizer_digest(released(1).manifest_digest) == STATE_DIGEST
    assert again.optimizer_digest(a_round(2).manifest_digest) is None
    again.close()


def test_a_state_directory_that_is_gone_cannot_be_written(store: Store, tmp_path: Path) -> None:
    assert store.can_write()
    (tmp_path / "state").rename(tmp_path / "elsewhere")
    assert not store.can_write()


def test_progress_counts_what_was_opened_and_what_was_released(store: Store) -> None:
    assert store.progress("tumours") == Progress()
    store.save_round(released(1))
    aborted = a_round(2, state=aggregator_pb2.ROUND_STATE_ABORTED, reason=pb.REASON_ABORTED)
    store.save_round(aborted)
    store.save_round(a_round(1, phase=pb.PHASE_EVALUATE))
    assert store.progress("tumours") == Progress(
        opened=2, released=1, release_round=1, release_digest=b"\x01" * 32, evaluated=1, aborts=1
    )


def a_round_that_is_gone(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM round WHERE number = 1")


def a_round_that_is_no_longer_released(db: sqlite3.Connection) -> None:
    db.execute("UPDATE round SET state = ? WHERE number = 1", (aggregator_pb2.ROUND_STATE_ABORTED,))


def another_number(db: sqlite3.Connection) -> None:
    db.execute("UPDATE round SET number = 7 WHERE number = 1")


def another_statement(db: sqlite3.Connection) -> None:
    body = pb.ReleaseStatement(
        manifest_digest=a_round(1).manifest_digest, release_digest=b"\x01" * 32, contributors=9
    ).SerializeToString()
    signed = pb.Signed(body=body).SerializeToString()
    db.execute("UPDATE round SET statement = ? WHERE number = 1", (signed,))


def no_message(db: sqlite3.Connection) -> None:
    db.execute("UPDATE round SET manifest = x'ff' WHERE number = 1")


def another_release(db: sqlite3.Connection) -> None:
    db.execute("UPDATE round SET release_digest = ? WHERE number = 1", (bytes(32),))


def other_exclusions(db: sqlite3.Connection) -> None:
    db.execute("UPDATE round SET exclusions = '[]' WHERE number = 1")


def exclusions_that_are_none(db: sqlite3.Connection) -> None:
    db.execute("UPDATE round SET exclusions = 'x' WHERE number = 1")


def another_coordinator(db: sqlite3.Connection) -> None:
    db.execute("UPDATE job SET coordinator = 'rival'")


def another_job(db: sqlite3.Connection) -> None:
    db.execute("UPDATE job SET spec = x'00'")


def no_job(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM job")


def another_optimizer_state(db: sqlite3.Connection) -> None:
    db.execute("UPDATE optimizer_state SET digest = ?", (bytes(32),))


def no_optimizer_state(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM optimizer_state")


def an_optimizer_state_of_no_release(db: sqlite3.Connection) -> None:
    unreleased = a_round(2).manifest_digest
    db.execute("INSERT INTO optimizer_state VALUES (?, ?)", (unreleased, STATE_DIGEST))


CHANGES: list[Callable[[sqlite3.Connection], None]] = [
    a_round_that_is_gone,
    a_round_that_is_no_longer_released,
    another_number,
    another_statement,
    no_message,
    another_release,
    other_exclusions,
    exclusions_that_are_none,
    another_coordinator,
    another_job,
    no_job,
    another_optimizer_state,
    no_optimizer_state,
    an_optimizer_state_of_no_release,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_rows_that_are_not_what_the_ledger_says_are_found_at_the_start(
    store: Store, tmp_path: Path, change: Callable[[sqlite3.Connection], None]
) -> None:
    record(store)
    store.close()
    with closing(sqlite3.connect(tmp_path / "state/aggregator.sqlite")) as db, db:
        change(db)
    with pytest.raises(UsageError, match="was tampered with"):
        Store(tmp_path / "state", SetClock())


def test_another_opening_of_a_number_does_not_take_the_place_of_the_first(store: Store) -> None:
    store.save_round(a_round(1))
    with pytest.raises(sqlite3.IntegrityError):
        store.save_round(a_round(1, manifest_digest=b"o" * 32))
    assert store.find_round("tumours", 1, pb.PHASE_TRAIN) == a_round(1)


def test_a_manifest_that_was_never_signed_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        store.round(b"x" * 32)


def test_the_ledger_is_a_chain_that_anybody_can_recompute(store: Store) -> None:
    store.append("open", {"round": 1})
    store.append("release", {"round": 1, "contributors": 3})
    head = bytes(32)
    for number, entry in enumerate(store.entries(1, 10), start=1):
        assert entry.number == number
        head = sha256(head + entry.kind.encode() + b"\x00" + entry.body).digest()
        assert entry.head == head
        assert store.ledger_head_at(number) == head
    assert store.ledger_head() == (2, head)
    assert store.ledger_head_at(0) == bytes(32)
    assert store.ledger_head_at(3) is None
    facts = {"contributors": 3, "round": 1, "unix_ms": SetClock.ms}
    assert json.loads(store.entries(2, 1)[0].body) == facts


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    def fail_midway() -> None:
        with store.transaction():
            store.append("open", {"round": 1})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert store.entries(1, 10) == []


def test_a_second_process_is_refused_the_same_state(store: Store, tmp_path: Path) -> None:
    assert store.job("tumours")
    with pytest.raises(UsageError, match="in use by another node"):
        Store(tmp_path / "state", SetClock())


def test_a_state_directory_that_is_a_file_is_a_mistake_with_a_name(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="state"):
        Store(tmp_path / "state", SetClock())


def test_what_was_refused_is_a_chain_of_its_own(store: Store) -> None:
    store.append("open", {"round": 1})
    store.append_refusal("refused", {"caller": "mallory"})
    assert store.ledger_head()[0] == 1
    assert [entry.kind for entry in store.entries(1, 10)] == ["open"]


def test_only_jobs_without_a_release_count_against_the_quota(store: Store) -> None:
    assert store.unreleased_bytes("coordinator", 0) == len(b"spec")
    assert store.unreleased_bytes("rival", 5) == 0
    store.add_job(JobRow("bones", "coordinator", b"more"))
    assert store.unreleased_bytes("coordinator", 0) == len(b"specmore")
    store.save_round(a_round(2))
    assert store.unreleased_bytes("coordinator", 0) == len(b"specmore")
    store.save_round(released(1))
    assert store.unreleased_bytes("coordinator", 0) == len(b"more")
    assert store.unreleased_bytes("coordinator", 5) == 5  # what is smaller counts as so much


def test_only_what_the_coordinator_ended_since_the_last_release_counts_as_an_abort(
    store: Store,
) -> None:
    aborted = aggregator_pb2.ROUND_STATE_ABORTED
    store.save_round(a_round(1, state=aborted, reason=pb.REASON_ABORTED))
    assert store.progress("tumours").aborts == 1
    store.save_round(released(2))
    assert store.progress("tumours").aborts == 0
    store.save_round(a_round(3, state=aborted, reason=pb.REASON_AGGREGATOR_RESTARTED))
    store.save_round(a_round(4, state=aborted, reason=pb.REASON_BELOW_FLOOR))
    store.save_round(a_round(5, state=aborted, reason=pb.REASON_ABORTED))
    store.save_round(a_round(6))
    assert store.progress("tumours").aborts == 1
    store.save_round(a_round(6, state=aborted, reason=pb.REASON_MODEL_MISSING))
    assert store.progress("tumours").aborts == 2
