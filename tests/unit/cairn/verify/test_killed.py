"""`cairn verify` on a run that was killed: what is not there yet is told from what is wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cairn.protocol.statements import envelope, head_envelope
from tests.unit.cairn.verify.recorded import (
    Chain,
    Federation,
    signed_head,
    write_database,
    write_json,
    write_lines,
    write_run,
)
from tests.unit.cairn.verify.test_verify import FILES, checked


def lag(folder: Path, entries: int, *, completed: bool = False) -> None:
    """Leave the first entries of the ledger and the signed head of that time."""
    chain = Chain()
    chain.rows = Federation().ledger.rows[:entries]
    write_lines(folder / "ledger.jsonl", chain.rows)
    write_json(folder / "ledger_head.json", head_envelope(signed_head(chain)))
    write_json(folder / "checkpoint.json", {"job": "tumours", "round": 1, "completed": completed})


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A run that was killed in its second round; its ledger was fetched when it began."""
    write_run(tmp_path / "run", Federation())
    lag(tmp_path / "run", 1)
    return tmp_path / "run"


@pytest.mark.parametrize("entries", range(9))
def test_a_copy_of_the_ledger_that_lags_is_behind_and_not_wrong(killed: Path, entries: int) -> None:
    lag(killed, entries)
    result = checked(killed)
    assert result.exit_code == 1
    assert "FAILED" not in result.output
    assert "BEHIND" in result.output
    assert result.output.splitlines()[-1].startswith("Not ended: nothing that is there is wrong")


def test_a_run_that_was_killed_says_which_entry_would_prove_what(killed: Path) -> None:
    output = checked(killed).output
    for line in (
        "ok     release.json: tumours round 2 is signed by the aggregator: 3 owners, by mean",
        "ok     model.safetensors: it is the release of tumours round 2",
        "BEHIND release.json: ledger.jsonl ends at entry 1, before entry 7",
        "BEHIND evaluation.json: ledger.jsonl ends at entry 1, before entry 9",
        "BEHIND history.jsonl: line 1 is too many: ledger.jsonl has 0 releases",
    ):
        assert line in output


@pytest.mark.parametrize("entries", range(1, 9))
def test_a_run_that_says_it_is_completed_may_not_lag(killed: Path, entries: int) -> None:
    lag(killed, entries, completed=True)
    result = checked(killed)
    assert result.exit_code == 1
    assert "FAILED" in result.output
    assert "BEHIND" not in result.output
    assert "Not ended" not in result.output


def test_a_newer_copy_of_the_ledger_proves_what_a_killed_run_holds(
    killed: Path, tmp_path: Path
) -> None:
    write_database(tmp_path / "state/aggregator.sqlite", Federation().ledger.rows)
    result = checked(killed, "--ledger", tmp_path / "state")
    assert result.exit_code == 0, result.output
    assert "release.json: tumours round 2 is entry 7 of aggregator.sqlite" in result.output


def test_a_statement_is_behind_in_an_older_copy_of_the_ledger(killed: Path) -> None:
    result = checked(killed / "release.json", "--ledger", killed)
    assert result.exit_code == 1
    assert "BEHIND release.json: ledger.jsonl ends at entry 1" in result.output
    assert "FAILED" not in result.output


def tear(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 5])


def with_an_older_head(path: Path) -> None:
    chain = Chain()
    chain.rows = Federation().ledger.rows[:2]
    write_json(path, head_envelope(signed_head(chain)))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ledger.jsonl", tear),
        ("ledger.jsonl", Path.unlink),
        ("ledger_head.json", Path.unlink),
        ("ledger_head.json", with_an_older_head),
        ("history.jsonl", tear),
        ("history.jsonl", Path.unlink),
        ("release.json", Path.unlink),
        ("evaluation.json", Path.unlink),
        ("best.json", Path.unlink),
    ],
)
def test_what_a_killed_run_had_not_written_yet_is_behind(
    killed: Path, name: str, change: Callable[[Path], object]
) -> None:
    lag(killed, 9)
    change(killed / name)
    if name == "ledger.jsonl":  # the head is written after the entries
        with_an_older_head(killed / "ledger_head.json")
    if (name, change) == ("ledger.jsonl", Path.unlink):
        (killed / "ledger_head.json").unlink()
    result = checked(killed)
    assert result.exit_code == 1
    assert "FAILED" not in result.output
    assert f"BEHIND {name}" in result.output
    write_json(killed / "checkpoint.json", {"job": "tumours", "round": 2, "completed": True})
    result = checked(killed)
    assert result.exit_code == 1
    assert f"FAILED {name}" in result.output


@pytest.mark.parametrize("name", FILES)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_byte_of_a_killed_run_can_be_changed_unnoticed(
    name: str, killed: Path, tmp_path: Path, data: st.DataObject
) -> None:
    lag(killed, 5)
    folder = tmp_path / "changed"
    shutil.copytree(killed, folder, dirs_exist_ok=True)
    content = bytearray((killed / name).read_bytes())
    position = data.draw(st.integers(0, len(content) - 2))  # without its last newline it is torn
    content[position] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    result = checked(folder)
    assert result.exit_code == 1, result.output
    assert f"FAILED {name}: " in result.output
    assert "Not ended" not in result.output


def test_a_head_beyond_the_copy_is_wrong_even_in_a_killed_run(killed: Path) -> None:
    """The head is written after the entries: a copy that is shorter was cut."""
    write_json(killed / "ledger_head.json", head_envelope(signed_head(Federation().ledger)))
    result = checked(killed)
    assert result.exit_code == 1
    assert "FAILED ledger_head.json: the aggregator signed for 9 entries" in result.output


def test_a_later_best_model_than_its_statement_is_behind(killed: Path) -> None:
    """The model of the best release is replaced before its statement."""
    lag(killed, 9)
    shutil.copy(killed / "model.safetensors", killed / "best.safetensors")
    result = checked(killed)
    assert result.exit_code == 1
    assert "FAILED" not in result.output
    assert "BEHIND best.safetensors: it is the release of entry 7" in result.output


def test_a_later_model_than_its_statement_is_behind(killed: Path) -> None:
    lag(killed, 9)
    statements = Federation().statements
    write_json(killed / "release.json", envelope(statements[0]))
    result = checked(killed)
    assert result.exit_code == 1
    assert "FAILED" not in result.output
    assert "BEHIND model.safetensors: it is the release of entry 7" in result.output
