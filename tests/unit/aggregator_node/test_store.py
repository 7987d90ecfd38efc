"""What outlives the aggregator's process."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from aggregator_node.policy import Progress
from aggregator_node.store import JobRow, RoundRow, Store
from cairn.errors import NotFound, UsageError
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb


def a_round(number: int, **changes: object) -> RoundRow:
    values: dict[str, object] = {
        "manifest_digest": number.to_bytes(32, "big"),
        "job": "tumours",
        "number": number,
        "phase": pb.PHASE_TRAIN,
        "manifest": b"signed",
    }
    return RoundRow(**{**values, **changes})  # type: ignore[arg-type]  # the changes are the test's


def released(number: int) -> RoundRow:
    return a_round(
        number,
        state=aggregator_pb2.ROUND_STATE_RELEASED,
        statement=b"signed too",
        release_digest=bytes([number]) * 32,
        exclusions=(("carol", pb.REASON_LEASE_EXPIRED),),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "state")
    store.add_job(JobRow("tumours", "coordinator", b"spec"))
    return store


def test_what_was_stored_is_there_after_a_restart(store: Store, tmp_path: Path) -> None:
    store.save_round(released(1))
    store.save_round(a_round(2))
    store.close()

    again = Store(tmp_path / "state")

    assert again.job("tumours") == JobRow("tumours", "coordinator", b"spec")
    assert again.round(released(1).manifest_digest) == released(1)
    assert again.open_rounds() == [a_round(2)]
    again.close()


def test_progress_counts_what_was_opened_and_what_was_released(store: Store) -> None:
    assert store.progress("tumours") == Progress()
    store.save_round(released(1))
    store.save_round(a_round(2, state=aggregator_pb2.ROUND_STATE_ABORTED))
    store.save_round(a_round(1, phase=pb.PHASE_EVALUATE, manifest_digest=b"e" * 32))
    assert store.progress("tumours") == Progress(
        opened=2, released=1, release_round=1, release_digest=b"\x01" * 32, evaluated=1
    )


def test_a_manifest_that_was_never_signed_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        store.round(b"x" * 32)


def test_the_ledger_is_a_chain_that_anybody_can_recompute(store: Store) -> None:
    store.append("open", {"round": 1})
    store.append("release", {"round": 1, "contributors": 3})
    head = bytes(32)
    for number, (count, kind, body, stored) in enumerate(store.entries(1, 10), start=1):
        assert count == number
        head = sha256(head + kind.encode() + b"\x00" + body).digest()
        assert stored == head
    assert store.head() == head
    assert json.loads(store.entries(2, 1)[0][2]) == {"contributors": 3, "round": 1}


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    def fail_midway() -> None:
        with store.transaction():
            store.append("open", {"round": 1})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert store.entries(1, 10) == []


def test_a_second_process_is_refused_the_same_state(store: Store, tmp_path: Path) -> None:
    assert store.head()
    with pytest.raises(UsageError, match="in use by another aggregator"):
        Store(tmp_path / "state")


def test_a_state_directory_that_is_a_file_is_a_mistake_with_a_name(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="state"):
        Store(tmp_path / "state")
