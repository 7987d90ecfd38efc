import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cairn.storage.database import StateDirectory

HEAD = """
import errno, os, sqlite3, sys
from pathlib import Path
from unittest import mock
from cairn.storage.files import write_atomically
from cairn.storage.database import StateDirectory
home = Path(sys.argv[1])
"""
COMMIT = """
try:
    with StateDirectory(home, "database").transaction():
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error
finally:
    print("undone")
"""
FSYNC = """
try:
    with mock.patch.object(os, "fsync", side_effect=OSError(errno.{0}, os.strerror(errno.{0}))):
        write_atomically(home / "file", [b"new"])
finally:
    print("undone", len(list(home.glob(".cairn-*"))), flush=True)
"""


def run(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HEAD + code, str(home)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("code", [COMMIT, FSYNC.format("EIO"), FSYNC.format("EROFS")])
def test_what_the_disk_lost_ends_the_process_at_once_and_undoes_nothing(
    code: str, tmp_path: Path
) -> None:
    done = run(code, tmp_path)
    assert (done.returncode, "undone" in done.stdout) == (1, False)
    assert "error: the disk failed (" in done.stderr
    assert "Look at the disk, then start it again" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_ends_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run(FSYNC.format("ENOSPC"), tmp_path)
    assert done.stdout == "undone 0\n"
    assert "OSError: [Errno 28]" in done.stderr


def test_a_database_goes_on_once_its_full_disk_has_room_again(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state", "database")
    state.db.execute("CREATE TABLE kept (what BLOB)")
    pages = state.db.execute("PRAGMA page_count").fetchone()[0]
    state.db.execute(f"PRAGMA max_page_count = {pages}")

    def keep() -> None:
        with state.transaction():
            state.db.execute("INSERT INTO kept VALUES (zeroblob(100000))")

    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError, match="full"):
            keep()
    state.db.execute(f"PRAGMA max_page_count = {pages + 100}")
    keep()
    assert state.db.execute("SELECT count(*) FROM kept").fetchone()[0] == 1
    state.close()
