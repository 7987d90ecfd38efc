"""`cairn reset` forgives the failures of one task, in the ledger of a node that does not run."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cairn.cli.reset import reset
from cairn.ledger.files import read_ledger
from cairn.runtime.clock import Clock
from cairn.storage.database import StateDirectory
from cairn.storage.directory import OWNER_DATABASE
from owner_node.records.ledger import OwnerLedger
from tests.unit.cairn.cli.examination import made


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    return made(tmp_path)


def called(ward: Path, task: str = "mean", *options: str) -> Result:
    return CliRunner().invoke(reset, [*options, str(ward / "alice.toml"), task])


def ledger_of(ward: Path) -> tuple[StateDirectory, OwnerLedger]:
    state = StateDirectory(ward / "alice/state", OWNER_DATABASE)
    return state, OwnerLedger(state, Clock())


def fail_once(ward: Path) -> None:
    state, ledger = ledger_of(ward)
    facts = {"job": "j", "round": 1, "manifest_digest": "aa" * 32, "phase": "train"}
    ledger.record("joined", facts | {"task": "mean"})
    ledger.record("declined", facts | {"reason": "TASK_FAILED"})
    state.close()


def test_a_reset_is_recorded_and_forgives_what_had_failed(ward: Path) -> None:
    fail_once(ward)
    result = called(ward)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Failures of mean that are forgiven: 1.")
    *_, entry = read_ledger(ward / "alice/state" / OWNER_DATABASE)
    assert (entry.kind, entry.facts["task"], entry.facts["failures"]) == ("reset", "mean", 1)
    state, ledger = ledger_of(ward)
    assert ledger.past.budgets.failures("mean") == 0
    state.close()


def kept_by(ward: Path, number: int, task: str = "mean") -> Path:
    """Have a round of the task end with its release, which counts alice, and return the file of what was kept."""
    state, ledger = ledger_of(ward)
    digest = bytes([number]) * 32
    facts = {"job": f"j{number}", "round": 1, "manifest_digest": digest.hex(), "phase": "train"}
    said = {"payload_digest": "", "examples": 1, "metrics": {}}
    ledger.record("sent", facts | said | {"task": task})
    if number > 1:  # else it is still open
        ledger.record("released", facts | {"release_digest": "", "counted": True})
    state.close()
    file = ward / "alice/state/kept" / f"{digest.hex()}.{'ab' * 32}.safetensors"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"tensors")
    return file


def test_what_a_task_has_kept_is_dropped_and_nothing_else_changes(ward: Path) -> None:
    fail_once(ward)
    files = [kept_by(ward, number) for number in (1, 2, 3)]
    of_another = kept_by(ward, 4, "other")
    orphan = of_another.with_name(f"{'0' * 64}.{'ab' * 32}.safetensors")
    orphan.write_bytes(b"of a round that did not count alice")
    before = read_ledger(ward / "alice/state" / OWNER_DATABASE)
    result = called(ward, "mean", "--kept")
    assert result.exit_code == 0, result.output
    assert "Files with kept tensors of mean that were deleted" in result.output
    assert result.output.rstrip().endswith(": 4.")
    assert [file for file in (*files, orphan, of_another) if file.exists()] == [of_another]
    assert list(read_ledger(ward / "alice/state" / OWNER_DATABASE)) == list(before)
    assert called(ward, "mean", "--kept").output.rstrip().endswith(": 0.")


def test_what_a_running_node_has_kept_is_not_dropped(ward: Path) -> None:
    file = kept_by(ward, 2)
    state, _ = ledger_of(ward)
    result = called(ward, "mean", "--kept")
    state.close()
    assert result.exit_code == 2
    assert file.exists()


def test_a_node_that_runs_has_to_be_stopped_first(ward: Path) -> None:
    fail_once(ward)
    state, _ = ledger_of(ward)
    result = called(ward)
    state.close()
    assert result.exit_code == 2
    assert "alice.toml is running" in result.output
    assert "stop the node, run this again, and start it" in " ".join(result.output.split())


def test_a_task_that_is_not_in_the_file_is_named_with_those_that_are(ward: Path) -> None:
    fail_once(ward)
    result = called(ward, "men")
    assert result.exit_code == 2
    assert "has no task men; its tasks: mean" in result.output


def test_an_owner_without_a_ledger_is_left_without_one(ward: Path) -> None:
    result = called(ward)
    assert result.exit_code == 2
    assert "nothing to reset" in result.output
    assert not (ward / "alice/state").exists()


@pytest.mark.parametrize("kind", ["pipe", "loop"])
def test_a_lock_that_is_no_file_is_named_and_not_waited_for(ward: Path, kind: str) -> None:
    fail_once(ward)
    lock = ward / "alice/state/lock"
    lock.unlink()
    if kind == "pipe":
        os.mkfifo(lock)
        assert called(ward).exit_code == 0
    else:
        lock.symlink_to("lock")
        result = called(ward)
        assert result.exit_code == 2, result.exception
        assert "alice/state cannot be used" in "".join(result.output.split("\n"))


@pytest.mark.parametrize(
    "made_by_nobody",
    [
        "CREATE TRIGGER t BEFORE INSERT ON ledger BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TRIGGER t AFTER INSERT ON ledger BEGIN DELETE FROM ledger WHERE number < 3; END",
        "CREATE VIEW v AS SELECT * FROM ledger",
    ],
)
def test_no_trigger_keeps_a_reset_out_of_the_ledger_that_is_said_to_have_it(
    ward: Path, made_by_nobody: str
) -> None:
    fail_once(ward)
    with closing(sqlite3.connect(ward / "alice/state" / OWNER_DATABASE)) as db:
        db.execute(made_by_nobody)
    result = called(ward)
    assert result.exit_code == 2, result.output
    assert "it has triggers or views, which no node makes" in " ".join(result.output.split())


def test_a_database_that_another_program_locks_is_named_with_the_cure(ward: Path) -> None:
    fail_once(ward)
    with closing(
        sqlite3.connect(ward / "alice/state" / OWNER_DATABASE, isolation_level=None)
    ) as db:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        result = called(ward)
    assert result.exit_code == 2
    assert "database is locked; end the program that has it open" in " ".join(result.output.split())
