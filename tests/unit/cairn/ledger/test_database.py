"""What may be asked of a database that a stranger may have made."""

import sqlite3

import pytest

from cairn.ledger.database import _check_plain


@pytest.fixture
def db() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("CREATE TABLE ledger (number INTEGER PRIMARY KEY, kind TEXT, body BLOB, head BLOB)")
    db.execute("CREATE TABLE other (x)")
    db.execute("CREATE VIEW through AS SELECT * FROM ledger")
    _check_plain(db, "ledger")
    return db


def test_the_rows_of_the_table_can_be_read(db: sqlite3.Connection) -> None:
    assert db.execute("SELECT number, kind, body, head FROM ledger").fetchall() == []


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM ledger",
        "INSERT INTO ledger VALUES (1, 'job', '', '')",
        "SELECT x FROM other",
        "SELECT 1 FROM through",
        "SELECT abs(number) FROM ledger",
        "PRAGMA user_version",
        "ATTACH ':memory:' AS another",
    ],
)
def test_nothing_else_is_done(db: sqlite3.Connection, statement: str) -> None:
    with pytest.raises(sqlite3.DatabaseError, match=r"not authorized|prohibited"):
        db.execute(statement)
