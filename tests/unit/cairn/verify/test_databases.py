"""`cairn verify` on the database of a node that runs, was killed, was copied or is broken."""

import random
import sqlite3
from hashlib import sha256
from pathlib import Path

import pytest

from cairn.ledger.chain import Ledger
from cairn.ledger.files import read_ledger
from cairn.runtime.clock import Clock
from cairn.storage.database import StateDirectory
from tests.unit.cairn.verify.recorded import Federation, owners_chain
from tests.unit.cairn.verify.test_owner import owners_ledger
from tests.unit.cairn.verify.test_verify import checked


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        path.name: (sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.iterdir()
    }


def test_the_ledger_of_a_running_node_is_read_and_nothing_is_written(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state", "owner.sqlite")
    ledger = Ledger(state.db, "ledger", Clock())
    with state.transaction():
        ledger.append("refused", {"why": "committed, and in the write-ahead log only"})
    before = snapshot(state.path)
    assert "owner.sqlite-wal" in before
    assert [entry.kind for entry in read_ledger(state.path / "owner.sqlite")] == ["refused"]
    assert snapshot(state.path) == before
    with state.transaction():
        ledger.append("refused", {"why": "the reader is in nobody's way"})
    state.close()


@pytest.mark.parametrize(
    "left", [("-wal", "-shm"), ("-wal",), ()], ids=["killed", "copied", "stopped"]
)
def test_a_copy_that_cannot_be_written_is_read(tmp_path: Path, left: tuple[str, ...]) -> None:
    state = StateDirectory(tmp_path / "state", "owner.sqlite")
    ledger = Ledger(state.db, "ledger", Clock())
    with state.transaction():
        ledger.append("refused", {"why": "a reason"})
    if not left:
        state.close()
    copy = tmp_path / "copy"
    copy.mkdir()
    for end in ("", *left):
        (copy / f"owner.sqlite{end}").write_bytes((state.path / f"owner.sqlite{end}").read_bytes())
    if left:
        state.close()
    for path in copy.iterdir():
        path.chmod(0o400)
    copy.chmod(0o500)
    names = sorted(copy.iterdir())
    assert checked(copy).exit_code == 0
    assert [entry.kind for entry in read_ledger(copy / "owner.sqlite")] == ["refused"]
    assert sorted(copy.iterdir()) == names
    copy.chmod(0o700)


def test_a_broken_database_is_reported_in_words(tmp_path: Path) -> None:
    path = owners_ledger(tmp_path, owners_chain("alice", Federation().statements))
    database = path / "owner.sqlite"
    content = bytearray(database.read_bytes())
    content[100:] = random.Random(7).randbytes(len(content) - 100)
    database.write_bytes(content)
    assert checked(path).exit_code == 1
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(database).execute("SELECT * FROM ledger").fetchall()
