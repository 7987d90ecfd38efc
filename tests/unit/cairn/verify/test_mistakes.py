"""What `cairn verify` and `cairn ledger` say to mistakes and to corrupt files; and what they print."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from cairn.cli.verify import ledger
from tests.unit.cairn.verify.recorded import (
    Chain,
    Federation,
    write_database,
    write_run,
)
from tests.unit.cairn.verify.test_verify import KEY_TEXT, checked


@pytest.mark.parametrize(
    ("make", "key", "words"),
    [
        (lambda _: None, KEY_TEXT, "there is no such file or directory"),
        (lambda path: path.mkdir(), KEY_TEXT, "is nothing that can be verified"),
        (lambda path: path.write_text("x"), KEY_TEXT, "is nothing that can be verified"),
        (lambda path: write_run(path, Federation()), None, "name it with --key"),
        (lambda path: write_run(path, Federation()), "ed25519:AAAA", "is not a signing key"),
    ],
    ids=["nothing", "empty directory", "some file", "no key", "no good key"],
)
def test_a_mistake_in_the_call_is_one_sentence_and_exit_code_2(
    tmp_path: Path, make: Callable[[Path], object], key: str | None, words: str
) -> None:
    make(tmp_path / "path")
    result = checked(tmp_path / "path", key=key)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


CORRUPT = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"null\n",
    b'{"number": 1}\n',
    b"SQLite format 3\x00",
]


@pytest.mark.parametrize("content", CORRUPT, ids=[repr(c[:8]) for c in CORRUPT])
@pytest.mark.parametrize("name", ["release.json", "ledger.jsonl", "aggregator.sqlite"])
def test_a_corrupt_file_ends_in_a_sentence_and_never_in_a_trace(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    result = checked(path)
    assert result.exit_code == (0 if (name, content) == ("ledger.jsonl", b"") else 1), result.output
    if name != "release.json":
        printed = CliRunner().invoke(ledger, [str(path)])
        assert printed.exception is None or isinstance(printed.exception, SystemExit)
        assert printed.exit_code == (0 if result.exit_code == 0 else 2)


@pytest.mark.parametrize("statement", ["CREATE TABLE other (x)", "CREATE TABLE ledger (x)"])
def test_a_database_without_a_ledger_is_refused(tmp_path: Path, statement: str) -> None:
    db = sqlite3.connect(tmp_path / "aggregator.sqlite")
    db.execute(statement)
    db.close()
    result = checked(tmp_path / "aggregator.sqlite")
    assert result.exit_code == 1
    assert "it cannot be read as a ledger: no such" in result.output


def test_an_entry_is_printed_with_its_time_and_without_signed_messages(tmp_path: Path) -> None:
    chain = Chain()
    chain.add("receipt", manifest_digest="ab" * 32, receipt="A" * 400, number=99)
    write_database(tmp_path / "owner.sqlite", chain.rows)
    result = CliRunner().invoke(ledger, [str(tmp_path)])
    assert json.loads(result.output) == {
        "number": 1,
        "kind": "receipt",
        "at": "2023-11-14T22:13:20.000+00:00",
        "manifest_digest": "ab" * 32,
    }
    full = CliRunner().invoke(ledger, [str(tmp_path), "--full"])
    assert json.loads(full.output)["receipt"] == "A" * 400


def test_what_an_aggregator_refused_is_printed(tmp_path: Path) -> None:
    refusals = Chain()
    refusals.add("refused", caller="cairn://clinics/owner/eve", method="SubmitUpdate")
    write_database(tmp_path / "aggregator.sqlite", Federation().ledger.rows, refusals.rows)
    for path in (tmp_path, tmp_path / "aggregator.sqlite"):
        result = CliRunner().invoke(ledger, [str(path), "--refusals"])
        assert json.loads(result.output) == {
            "number": 1,
            "kind": "refused",
            "at": "2023-11-14T22:13:20.000+00:00",
            "caller": "cairn://clinics/owner/eve",
            "method": "SubmitUpdate",
        }


@pytest.mark.parametrize("name", ["owner.sqlite", "ledger.jsonl"])
def test_only_an_aggregators_state_has_refusals(tmp_path: Path, name: str) -> None:
    if name == "owner.sqlite":
        write_database(tmp_path / name, Chain().rows)
    else:
        write_run(tmp_path / "run", Federation())
        (tmp_path / "run" / name).rename(tmp_path / name)
    for path in (tmp_path, tmp_path / name, tmp_path / "nowhere"):
        result = CliRunner().invoke(ledger, [str(path), "--refusals"])
        assert result.exit_code == 2
        assert "has no refusals of an aggregator" in " ".join(result.output.split())
