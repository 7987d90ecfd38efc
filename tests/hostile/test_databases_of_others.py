"""SQLite files that somebody made to keep, fill or fool whoever reads a ledger out of them."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.hostile.offline import KEY_TEXT, SECONDS, cairn, started, verified
from tests.scenarios.processes import ROOT
from tests.unit.cairn.verify.recorded import Federation, write_database

COLUMNS = "number INTEGER PRIMARY KEY, kind TEXT, body BLOB, head BLOB"
ENDLESS = """WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)
 SELECT x AS number, 'open' AS kind, x'7b7d' AS body, zeroblob(32) AS head FROM n"""
ONE_ROW = "SELECT 1 AS number, 'open' AS kind, x'7b7d' AS body, zeroblob(32) AS head"
TEN = "(SELECT 1 AS x UNION ALL " + " UNION ALL ".join(f"SELECT {n}" for n in range(2, 11)) + ")"


def made(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as db, db:
        for statement in statements:
            db.execute(statement)
    return path


def huge_values(path: Path) -> None:
    made(path, f"CREATE TABLE ledger ({COLUMNS})")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO ledger VALUES (1, 'open', zeroblob(300000000), zeroblob(32))")


def many_tables(path: Path) -> None:
    """A schema that takes far more memory than the file has bytes."""
    made(path, f"CREATE TABLE ledger ({COLUMNS})", "PRAGMA writable_schema = ON")
    columns = ", ".join(f"c{number} INTEGER" for number in range(300))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA writable_schema = ON")
        db.executemany(
            "INSERT INTO sqlite_master VALUES ('table', ?, ?, 2, ?)",
            (
                (f"t{number}", f"t{number}", f"CREATE TABLE t{number} ({columns})")
                for number in range(40_000)
            ),
        )


def view_that_says_it_is_a_table(path: Path) -> None:
    made(path, f"CREATE TABLE other ({COLUMNS})", f"CREATE VIEW ledger AS {ENDLESS}")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET type = 'table', rootpage = 2 WHERE name = 'ledger'")


def pages_in_a_circle(path: Path) -> None:
    """Every inner page of the tree leads to one leaf, so that there are more rows than ever end."""
    made(path, f"CREATE TABLE ledger ({COLUMNS})")
    with closing(sqlite3.connect(path)) as db, db:
        rows = ((n, "open", b"{}" * 100, bytes(32)) for n in range(1, 100_000))
        db.executemany("INSERT INTO ledger VALUES (?, ?, ?, ?)", rows)
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    for begin in range(size, len(content), size):
        if content[begin] == 5:  # an inner page
            cells = int.from_bytes(content[begin + 3 : begin + 5], "big")
            content[begin + 8 : begin + 12] = (3).to_bytes(4, "big")
            for cell in range(cells):
                at = begin + 12 + 2 * cell
                place = begin + int.from_bytes(content[at : at + 2], "big")
                content[place : place + 4] = (3).to_bytes(4, "big")
    path.write_bytes(content)


def cut_in_half(path: Path) -> None:
    write_database(path, Federation().ledger.rows)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 100])


def by_statements(*statements: str) -> Callable[[Path], object]:
    return lambda path: made(path, *statements)


MAKERS: dict[str, Callable[[Path], object]] = {
    "an endless view": by_statements(f"CREATE VIEW ledger AS {ENDLESS}"),
    "a view of a hundred thousand million rows": by_statements(
        f"CREATE VIEW ledger AS {ONE_ROW} FROM {', '.join(f'{TEN} t{n}' for n in range(11))}"
    ),
    "a view as a table": view_that_says_it_is_a_table,
    "an index of words": by_statements(
        "CREATE VIRTUAL TABLE ledger USING fts5(number, kind, body, head)"
    ),
    "a generated column": by_statements(
        "CREATE TABLE ledger (number INTEGER PRIMARY KEY, kind TEXT,"
        " body BLOB AS (CAST(printf('%.200000000c', 'x') AS BLOB)), head BLOB)",
        "INSERT INTO ledger (number, kind, head) VALUES (1, 'open', zeroblob(32))",
    ),
    "no row numbers": by_statements(
        "CREATE TABLE ledger (number TEXT PRIMARY KEY, kind, body, head) WITHOUT ROWID"
    ),
    "rows that have to be sorted": by_statements(
        "CREATE TABLE ledger (number, kind, body, head)",
        "INSERT INTO ledger WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n"
        " WHERE x < 300000) SELECT -x, 'open', zeroblob(300), zeroblob(32) FROM n",
    ),
    "a name that is no text": by_statements(
        f"CREATE TABLE ledger ({COLUMNS})",
        "PRAGMA writable_schema = ON",
        "INSERT INTO sqlite_master VALUES ('table', CAST(x'ff' AS TEXT), 'x', 2, 'CREATE TABLE')",
    ),
    "a value of 300 MB": huge_values,
    "forty thousand tables": many_tables,
    "pages in a circle": pages_in_a_circle,
    "half of it": cut_in_half,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_database_that_no_node_wrote_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "aggregator.sqlite"
    # By a process of its own: where one has read a ledger, SQLite's memory is bounded for good.
    module = "tests.hostile.test_databases_of_others"
    make = f"import sys, pathlib, {module} as m; m.MAKERS[sys.argv[1]](pathlib.Path(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", make, name, path], cwd=ROOT, check=True)
    before = path.read_bytes() if path.stat().st_size < 1 << 24 else b""
    ran = verified(tmp_path, path)
    assert ran.code == 1
    assert "FAILED aggregator.sqlite: " in ran.said
    assert cairn(tmp_path, "ledger", path).code == 2
    if before:
        assert path.read_bytes() == before
    assert {each.name for each in tmp_path.glob("aggregator*")} == {"aggregator.sqlite"}


def test_refusals_are_read_within_the_same_bounds(tmp_path: Path) -> None:
    path = tmp_path / "aggregator.sqlite"
    write_database(path, Federation().ledger.rows)
    made(path, "DROP TABLE refusals", f"CREATE VIEW refusals AS {ENDLESS}")
    ran = verified(tmp_path, path)
    assert "ok     aggregator.sqlite: the chain of 9 entries holds" in ran.said
    assert "FAILED aggregator.sqlite, refusals: it cannot be read as refusals" in ran.said
    assert cairn(tmp_path, "ledger", path, "--refusals").code == 2


def test_a_trigger_does_nothing(tmp_path: Path) -> None:
    path = tmp_path / "aggregator.sqlite"
    write_database(path, Federation().ledger.rows)
    made(
        path,
        "CREATE TRIGGER late AFTER INSERT ON ledger BEGIN DELETE FROM refusals; END",
        "CREATE INDEX other ON ledger (kind, body)",
    )
    assert verified(tmp_path, path).code == 0


@pytest.mark.parametrize(
    ("database", "log"), [(1 << 40, 0), (1 << 40, 1 << 20), (1 << 20, 1 << 40)]
)
def test_a_database_or_a_log_of_a_terabyte_is_not_copied(
    tmp_path: Path, database: int, log: int
) -> None:
    path = tmp_path / "aggregator.sqlite"
    write_database(path, Federation().ledger.rows)
    with path.open("ab") as file:
        file.truncate(database)
    if log:
        with path.with_name("aggregator.sqlite-wal").open("wb") as file:
            file.truncate(log)
    ran = verified(tmp_path, path)
    assert ran.code == 1
    assert "bytes; this command reads" in ran.said


def test_a_log_that_is_a_pipe_is_named(tmp_path: Path) -> None:
    path = tmp_path / "aggregator.sqlite"
    write_database(path, Federation().ledger.rows)
    os.mkfifo(f"{path}-wal")
    assert "a named pipe, not a regular file" in verified(tmp_path, path).said


@pytest.mark.parametrize("command", ["verify", "ledger"])
def test_a_command_that_is_stopped_while_it_copies_leaves_nothing(
    tmp_path: Path, command: str
) -> None:
    path = tmp_path / "aggregator.sqlite"
    write_database(path, Federation().ledger.rows)
    with path.open("ab") as file:
        file.truncate(1 << 30)
    temporary = tmp_path / "temporary"
    key = ["--key", KEY_TEXT] if command == "verify" else []
    process = started(tmp_path, command, path, *key)
    deadline = time.monotonic() + SECONDS
    while not (temporary.exists() and list(temporary.glob("*/*"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    assert b"Traceback" not in err
    assert list(temporary.iterdir()) == []
