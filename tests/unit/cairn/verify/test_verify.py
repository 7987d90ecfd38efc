"""`cairn verify` on a run's folder and on an aggregator's ledger."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cairn.cli.verify import verify
from cairn.identity.signing_keys import public_signing_key_text
from cairn.protocol.statements import STATEMENT, envelope, head_envelope, sign
from tests.unit.cairn.verify.recorded import (
    KEY,
    MODEL,
    OTHER_KEY,
    Chain,
    Federation,
    Row,
    signed_head,
    write_database,
    write_json,
    write_lines,
    write_run,
)

KEY_TEXT = public_signing_key_text(KEY)
FILES = ["model.safetensors", "release.json", "evaluation.json", "ledger.jsonl", "ledger_head.json"]
FILES += ["best.safetensors", "best.json"]
Rows = list[Row]


def checked(path: Path, *options: str | Path, key: str | None = KEY_TEXT) -> Result:
    arguments = [str(path), *map(str, options)]
    result = CliRunner().invoke(verify, arguments + (["--key", key] if key else []))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in {0, 1, 2}
    return result


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", Federation())
    return tmp_path / "run"


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "run"
    write_run(folder, Federation())
    return folder


def test_a_whole_run_is_as_it_was_signed_and_recorded(run: Path) -> None:
    result = checked(run)
    assert result.exit_code == 0, result.output
    assert (
        f"the chain of 9 entries holds; its head is {Federation().ledger.head.hex()}"
        in result.output
    )
    assert "release.json: tumours round 2 is entry 7 of ledger.jsonl" in result.output
    assert "model.safetensors: it is the release of tumours round 2" in result.output
    assert "evaluation.json: it evaluates the release of entry 7" in result.output
    assert "best.json: tumours round 1 is entry 3 of ledger.jsonl" in result.output
    assert "best.safetensors: it is the release of tumours round 1" in result.output
    assert "history.jsonl: its 2 rounds are the releases of tumours" in result.output


@pytest.mark.parametrize("name", FILES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_byte_of_a_run_can_be_changed_unnoticed(
    name: str, shared_run: Path, tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(shared_run, folder, dirs_exist_ok=True)
    content = bytearray((shared_run / name).read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    result = checked(folder)
    assert result.exit_code == 1, result.output
    assert f"FAILED {name}: " in result.output


@pytest.mark.parametrize("name", [*FILES, "history.jsonl"])
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_file_of_a_run_can_be_cut_off_unnoticed(
    name: str, shared_run: Path, tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(shared_run, folder, dirs_exist_ok=True)
    content = (shared_run / name).read_bytes()
    (folder / name).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    result = checked(folder)
    assert result.exit_code == 1, result.output


@pytest.mark.parametrize("name", [*FILES, "history.jsonl"])
def test_no_file_of_a_run_can_be_taken_away(name: str, run: Path) -> None:
    (run / name).unlink()
    result = checked(run)
    assert result.exit_code == 1
    assert f"FAILED {name}: it is missing" in result.output


def test_a_run_that_looked_for_no_best_release_needs_none(run: Path) -> None:
    (run / "best.safetensors").unlink()
    (run / "best.json").unlink()
    result = checked(run)
    assert result.exit_code == 0, result.output
    assert "best" not in result.output


def test_the_best_model_may_be_the_last_one(run: Path) -> None:
    shutil.copy(run / "model.safetensors", run / "best.safetensors")
    shutil.copy(run / "release.json", run / "best.json")
    assert checked(run).exit_code == 0


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (1, "it is not the statement of a released model of tumours"),
        (2, "tumours round 2 is later than the last release, tumours round 1"),
    ],
)
def test_what_is_no_release_of_the_run_cannot_be_its_best(
    run: Path, statement: int, words: str
) -> None:
    write_json(run / "best.json", envelope(Federation().statements[statement]))
    if statement == 2:
        write_json(run / "release.json", envelope(Federation().statements[0]))
    result = checked(run)
    assert result.exit_code == 1
    assert f"FAILED best.json: {words}" in result.output


def reordered(rows: Rows) -> Rows:
    rows[3], rows[4] = rows[4], rows[3]
    return rows


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[:4] + rows[5:], "entry 5 is missing: entry 6 is in its place"),
        (reordered, "entry 4 is missing: entry 5 is in its place"),
        (lambda rows: rows[1:], "entry 1 is missing: entry 2 is in its place"),
        (
            lambda rows: [*rows[:4], (5, "abort", *rows[4][2:]), *rows[5:]],
            "entry 5 does not follow from the one before it",
        ),
    ],
    ids=["dropped", "reordered", "beheaded", "renamed"],
)
def test_a_ledger_names_its_first_bad_entry(
    tmp_path: Path, change: Callable[[Rows], Rows], words: str
) -> None:
    write_lines(tmp_path / "ledger.jsonl", change(list(Federation().ledger.rows)))
    result = checked(tmp_path / "ledger.jsonl", key=None)
    assert result.exit_code == 1
    assert words in result.output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DELETE FROM ledger WHERE number = 5", "entry 5 is missing: entry 6 is in its place"),
        ("UPDATE ledger SET kind = 'abort' WHERE number = 5", "entry 5 does not follow"),
        ("UPDATE ledger SET body = body || x'20' WHERE number = 5", "entry 5 cannot be read"),
        ("UPDATE ledger SET body = x'7b7d' WHERE number = 5", "entry 5 does not follow"),
        ("UPDATE ledger SET head = zeroblob(32) WHERE number = 5", "entry 5 does not follow"),
        ("UPDATE ledger SET number = 50 WHERE number = 5", "entry 5 is missing"),
    ],
)
def test_an_aggregators_database_names_its_first_bad_entry(
    tmp_path: Path, change: str, words: str
) -> None:
    path = tmp_path / "aggregator.sqlite"
    write_database(path, Federation().ledger.rows)
    assert checked(tmp_path, key=None).exit_code == 0
    db = sqlite3.connect(path)
    with db:
        db.execute(change)
    db.close()
    result = checked(tmp_path, key=None)
    assert result.exit_code == 1
    assert f"aggregator.sqlite: {words}" in result.output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DELETE FROM refusals WHERE number = 1", "entry 1 is missing: entry 2 is in its place"),
        ("UPDATE refusals SET body = x'7b7d' WHERE number = 2", "entry 2 does not follow"),
        ("DROP TABLE refusals", "it cannot be read as refusals: no such table"),
    ],
)
def test_what_an_aggregator_refused_cannot_be_changed_unnoticed(
    tmp_path: Path, change: str, words: str
) -> None:
    refusals = Chain()
    for caller in ("owner/bob", "owner/eve", "coordinator/owner"):
        refusals.add("refused", caller=caller, method="SubmitUpdate")
    path = tmp_path / "aggregator.sqlite"
    write_database(path, Federation().ledger.rows, refusals.rows)
    good = checked(tmp_path, key=None)
    assert good.exit_code == 0
    assert (
        f"refusals: the chain of 3 entries holds; its head is {refusals.head.hex()}" in good.output
    )
    db = sqlite3.connect(path)
    with db:
        db.execute(change)
    db.close()
    result = checked(tmp_path, key=None)
    assert result.exit_code == 1
    assert f"FAILED aggregator.sqlite, refusals: {words}" in result.output


def test_a_ledger_without_its_last_entries_is_behind_its_signed_head(run: Path) -> None:
    write_lines(run / "ledger.jsonl", Federation().ledger.rows[:-1])
    result = checked(run / "ledger.jsonl")
    assert result.exit_code == 1
    assert (
        "the aggregator signed for 9 entries, ledger.jsonl has 8: entry 9 is missing"
        in result.output
    )


def test_an_entry_that_was_added_is_beyond_the_signed_head(run: Path) -> None:
    chain = Federation().ledger
    chain.add("abort", job="tumours")
    write_lines(run / "ledger.jsonl", chain.rows)
    result = checked(run)
    assert result.exit_code == 1
    assert "entry 10 is too many" in result.output


def test_what_another_key_signed_is_refused(run: Path) -> None:
    federation = Federation()
    forged = sign(OTHER_KEY, STATEMENT, federation.statements[2].body)
    write_json(run / "release.json", envelope(forged))
    write_json(run / "ledger_head.json", head_envelope(signed_head(federation.ledger, OTHER_KEY)))
    result = checked(run)
    assert result.exit_code == 1
    for name in ("release.json", "ledger_head.json"):
        assert f"FAILED {name}: the signature of the" in result.output


def test_a_model_with_one_bit_changed_is_refused(run: Path) -> None:
    changed = bytes([MODEL[0] ^ 1]) + MODEL[1:]
    (run / "model.safetensors").write_bytes(changed)
    result = checked(run)
    assert result.exit_code == 1
    assert f"its BLAKE3 is {blake3(changed).hexdigest()}" in result.output


def test_an_older_release_with_its_own_model_is_found(run: Path) -> None:
    write_json(run / "release.json", envelope(Federation().statements[0]))
    result = checked(run)
    assert result.exit_code == 1
    assert "entry 7 of ledger.jsonl is a later release of tumours" in result.output


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"round": 2', '"round": 3', "line 2 has round 3 instead of 2"),
        ('"contributors": 3', '"contributors": 4', "line 1 has contributors 4 instead of 3"),
        ('{"round": 2', '{"round": 1, "round": 2', "line 2: it is cut off or was changed"),
    ],
)
def test_a_history_that_the_ledger_does_not_bear_out_is_refused(
    run: Path, old: str, new: str, words: str
) -> None:
    path = run / "history.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    result = checked(run)
    assert result.exit_code == 1
    assert words in result.output


def test_a_run_that_took_up_a_job_of_another_folder_has_the_later_rounds_and_says_so(
    run: Path,
) -> None:
    path = run / "history.jsonl"
    first, second = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(second, encoding="utf-8")
    result = checked(run)
    assert result.exit_code == 0, result.output
    words = (
        "its 1 rounds are the releases of tumours in ledger.jsonl; the 1 before them are not in it"
    )
    assert words in result.output
    path.write_text(second + first, encoding="utf-8")
    result = checked(run)
    assert result.exit_code == 1
    assert "line 2 is too many: ledger.jsonl has 2 releases" in result.output


def test_a_run_that_was_stopped_may_lack_the_last_line_of_its_history(run: Path) -> None:
    path = run / "history.jsonl"
    path.write_text(path.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    assert checked(run).exit_code == 1
    write_json(run / "checkpoint.json", {"job": "tumours", "round": 1, "completed": False})
    assert checked(run).exit_code == 0


def test_two_copies_of_one_ledger_agree_and_two_ledgers_do_not(run: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    longer = Federation().ledger
    longer.add("abort", job="other")
    write_database(state / "aggregator.sqlite", longer.rows)
    assert checked(run, "--ledger", state).exit_code == 0
    assert checked(state, "--ledger", run).exit_code == 0
    other = Chain()
    other.add("job", job="other")
    write_database(tmp_path / "other" / "aggregator.sqlite", other.rows)
    result = checked(run, "--ledger", tmp_path / "other")
    assert result.exit_code == 1
    assert "FAILED ledger.jsonl: entry 1 is another one than in aggregator.sqlite" in result.output


def test_a_release_of_a_round_that_is_no_number_is_none_of_the_round(tmp_path: Path) -> None:
    federation = Federation()
    for number in (True, 2.0, [2], None):
        federation.ledger.add("release", job="tumours", round=number, phase="evaluate")
    write_json(tmp_path / "round-2.json", envelope(federation.statements[3]))
    write_lines(tmp_path / "ledger.jsonl", federation.ledger.rows)
    result = checked(tmp_path / "round-2.json", "--ledger", tmp_path / "ledger.jsonl")
    assert result.exit_code == 0, result.output
    assert "is another release of the same round" not in result.output


def test_a_statement_goes_with_an_owners_ledger_and_with_nothing_else(run: Path) -> None:
    for path in (run, run / "release.json", run / "ledger.jsonl"):
        result = checked(path, "--statement", run / "release.json")
        assert result.exit_code == 2
        assert "--statement goes with an owner's ledger" in " ".join(result.output.split())


def test_a_history_may_be_longer_than_its_longest_line(run: Path) -> None:
    lines = [
        {"round": n, "contributors": 3, "left_out": {"dora": "x" * 600_000}, "seconds": 0.1}
        for n in (1, 2)
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (run / "history.jsonl").write_text(text, encoding="utf-8")
    assert checked(run).exit_code == 0
    lines[1]["left_out"] = {"dora": "x" * (1 << 20)}
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (run / "history.jsonl").write_text(text, encoding="utf-8")
    result = checked(run)
    assert result.exit_code == 1
    assert "line 2 has more than 1048576 bytes" in result.output


def test_the_key_is_taken_out_of_a_nodes_file(run: Path, tmp_path: Path) -> None:
    config = tmp_path / "alice.toml"
    config.write_text(f'name = "alice"\naggregator_signing_key = "{KEY_TEXT}"\n', encoding="utf-8")
    assert checked(run, "--config", config, key=None).exit_code == 0
    assert checked(run, "--config", config).exit_code == 2
    config.write_text('name = "aggregator"\n', encoding="utf-8")
    result = checked(run, "--config", config, key=None)
    assert result.exit_code == 2
    assert "name the file of an owner or of a coordinator" in " ".join(result.output.split())


def test_a_ledger_is_checked_without_a_key_unless_its_signed_head_is_beside_it(run: Path) -> None:
    result = checked(run / "ledger.jsonl", key=None)
    assert result.exit_code == 2
    assert "name it with --key" in " ".join(result.output.split())
    (run / "ledger_head.json").unlink()
    assert checked(run / "ledger.jsonl", key=None).exit_code == 0
