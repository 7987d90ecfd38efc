"""Ledgers can only grow, and show every other change; a state directory has one owner and loses nothing."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.errors import InvalidMessage, UsageError
from cairn.ledger.chain import GENESIS, Entry, Ledger, check_chain, next_head
from cairn.runtime.clock import Clock
from cairn.storage.database import StateDirectory


class At(Clock):
    def unix_ms(self) -> int:
        return 1_700_000_000_123


def by_hand(*recorded: tuple[str, str]) -> list[bytes]:
    """The heads after each of these kinds and bodies."""
    heads, head = [], bytes(32)
    for kind, body in recorded:
        head = sha256(head + kind.encode() + b"\x00" + body.encode()).digest()
        heads.append(head)
    return heads


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    state = StateDirectory(tmp_path / "state", "node.sqlite")
    yield state
    state.close()


@pytest.fixture
def ledger(state: StateDirectory) -> Ledger:
    return Ledger(state.db, "ledger", At())


def grown(ledger: Ledger, count: int) -> Ledger:
    for number in range(1, count + 1):
        ledger.append("open", {"round": number})
    return ledger


def test_a_new_ledger_has_no_entry_and_32_zero_bytes_as_its_head(ledger: Ledger) -> None:
    assert ledger.head() == (0, b"\x00" * 32)
    assert ledger.head_at(0) == b"\x00" * 32
    assert list(ledger.all()) == []


def test_an_entry_is_canonical_json_with_its_time_and_chained_by_sha256(ledger: Ledger) -> None:
    ledger.append("open", {"round": 1, "job": "tumours"})
    last = ledger.append("abort", {"why": "größer"})
    bodies = [
        '{"job":"tumours","round":1,"unix_ms":1700000000123}',
        '{"unix_ms":1700000000123,"why":"gr\\u00f6\\u00dfer"}',
    ]
    heads = by_hand(("open", bodies[0]), ("abort", bodies[1]))
    entries = list(ledger.all())
    assert [entry.body.decode() for entry in entries] == bodies
    assert [entry.head for entry in entries] == heads
    assert entries[1] == last
    assert ledger.head() == (2, heads[1])
    assert [ledger.head_at(number) for number in range(4)] == [GENESIS, *heads, None]
    assert last.facts == {"why": "größer", "unix_ms": 1_700_000_000_123}


def test_a_ledger_goes_on_where_it_ended(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        state = StateDirectory(tmp_path / "state", "node.sqlite")
        assert Ledger(state.db, "ledger", At()).append("open", {}).number == expected
        state.close()


def test_entries_come_in_order_and_no_more_than_asked_for(ledger: Ledger) -> None:
    grown(ledger, 5)
    assert [entry.number for entry in ledger.entries(2, 3)] == [2, 3, 4]
    assert ledger.entries(6, 3) == []


def test_a_ledger_longer_than_a_page_is_read_whole(ledger: Ledger) -> None:
    grown(ledger, 2345)
    assert [entry.number for entry in ledger.all()] == list(range(1, 2346))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE ledger SET body = x'7b7d' WHERE number = 3", "entry 3 does not follow"),
        ("UPDATE ledger SET kind = 'abort' WHERE number = 3", "entry 3 does not follow"),
        ("UPDATE ledger SET head = zeroblob(32) WHERE number = 3", "entry 3 does not follow"),
        ("DELETE FROM ledger WHERE number = 3", "entry 3 is missing: entry 4 is in its place"),
        ("DELETE FROM ledger WHERE number = 1", "entry 1 is missing: entry 2 is in its place"),
        ("UPDATE ledger SET number = 9 WHERE number = 3", "entry 3 is missing"),
        (
            "INSERT INTO ledger SELECT 6, kind, body, head FROM ledger WHERE number = 5",
            "entry 6 does not follow",
        ),
    ],
)
def test_a_table_that_was_changed_names_the_first_bad_entry(
    state: StateDirectory, ledger: Ledger, change: str, words: str
) -> None:
    grown(ledger, 5)
    state.db.execute(change)
    with pytest.raises(InvalidMessage, match=words):
        list(ledger.all())


chains = st.lists(
    st.tuples(st.sampled_from(["open", "abort", "a"]), st.binary(max_size=9)),
    min_size=1,
    max_size=8,
)


def chained(recorded: list[tuple[str, bytes]]) -> list[Entry]:
    entries, head = [], GENESIS
    for number, (kind, body) in enumerate(recorded, 1):
        head = sha256(head + kind.encode() + b"\x00" + body).digest()
        entries.append(Entry(number, kind, body, head))
    return entries


@given(chains, st.data())
def test_no_change_of_one_entry_leaves_the_chain_whole(
    recorded: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    entries = chained(recorded)
    assert list(check_chain(entries)) == entries
    place = data.draw(st.integers(0, len(entries) - 1))
    entry = entries[place]
    changed = Entry(
        entry.number,
        data.draw(st.sampled_from([entry.kind, "refused"])),
        data.draw(st.sampled_from([entry.body, entry.body + b"x"])),
        data.draw(st.sampled_from([entry.head, bytes(32)])),
    )
    if changed == entry:
        return
    with pytest.raises(InvalidMessage, match=f"entry {place + 1} does not follow"):
        list(check_chain([*entries[:place], changed, *entries[place + 1 :]]))
    with pytest.raises(InvalidMessage, match=f"entry {place + 1} does not follow"):
        list(check_chain([changed], entries[place - 1] if place else None))


def test_a_part_of_a_chain_is_checked_from_the_entry_before_it() -> None:
    entries = chained([("open", b"1"), ("open", b"2"), ("abort", b"3")])
    assert list(check_chain(entries[1:], after=entries[0])) == entries[1:]
    with pytest.raises(InvalidMessage, match="entry 1 is missing"):
        list(check_chain(entries[1:]))


def test_the_kind_and_the_body_cannot_be_shifted_into_each_other() -> None:
    assert next_head(GENESIS, "ab", b"c") != next_head(GENESIS, "a", b"bc")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"7"])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidMessage, match="entry 4 is not a JSON object"):
        _ = Entry(4, "open", body, GENESIS).facts


def test_what_a_failed_transaction_wrote_is_gone(state: StateDirectory, ledger: Ledger) -> None:
    def record_and_fail() -> None:
        with state.transaction():
            ledger.append("open", {})
            raise InvalidMessage("something else went wrong")

    with pytest.raises(InvalidMessage, match="something else"):
        record_and_fail()
    assert ledger.head() == (0, GENESIS)
    with state.transaction():
        ledger.append("open", {})
    assert ledger.head()[0] == 1


def test_a_second_node_is_refused_the_same_directory(state: StateDirectory) -> None:
    with pytest.raises(UsageError, match="in use by another node"):
        StateDirectory(state.path, "node.sqlite")


def test_a_state_directory_is_its_owners_alone(state: StateDirectory) -> None:
    assert state.path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("content", [b"no database" * 100, None])
def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "state"
    if content is None:
        path.write_bytes(b"a file where a directory should be")
    else:
        path.mkdir()
        (path / "node.sqlite").write_bytes(content)
    with pytest.raises(UsageError, match=str(path)):
        StateDirectory(path, "node.sqlite")


def test_what_was_committed_survives_a_process_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys\n"
        "from cairn.runtime.clock import Clock\n"
        "from cairn.ledger.chain import Ledger\n"
        "from cairn.storage.database import StateDirectory\n"
        "state = StateDirectory(pathlib.Path(sys.argv[1]), 'node.sqlite')\n"
        "ledger = Ledger(state.db, 'ledger', Clock())\n"
        "with state.transaction():\n"
        "    print(ledger.append('open', {}).head.hex(), flush=True)\n"
        "state.db.execute('BEGIN IMMEDIATE')\n"
        "ledger.append('abort', {})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "state")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9
    state = StateDirectory(tmp_path / "state", "node.sqlite")
    entries = list(Ledger(state.db, "ledger", At()).all())
    assert [(entry.kind, entry.head.hex()) for entry in entries] == [("open", done.stdout.strip())]
    state.close()


def test_a_full_disk_keeps_the_ledger_as_it_was(state: StateDirectory, ledger: Ledger) -> None:
    grown(ledger, 1)
    pages = state.db.execute("PRAGMA page_count").fetchone()[0]
    state.db.execute(f"PRAGMA max_page_count = {pages}")
    before = ledger.head()
    with pytest.raises(sqlite3.OperationalError, match="full"), state.transaction():
        ledger.append("open", {"why": "x" * 100_000})
    assert ledger.head() == before
    assert json.loads(ledger.entries(1, 1)[0].body)["round"] == 1
