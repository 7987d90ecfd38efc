"""`cairn verify` on statements with several metrics, whose order in a map differs between processes."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cairn.protocol.statements import STATEMENT, envelope, sign
from cairn.v1 import round_pb2 as pb
from tests.unit.cairn.verify.recorded import KEY, Federation, write_json, write_run
from tests.unit.cairn.verify.test_verify import KEY_TEXT, checked

METRICS = {"accuracy": 0.5, "auc": 0.75, "f1": 1.0, "loss": 0.25, "recall": 0.125}
PROCESSES = 6


def stated(federation: Federation) -> pb.Signed:
    """The last evaluation's statement with several metrics; the ledger records it."""
    statement = pb.ReleaseStatement.FromString(federation.statements[3].body)
    statement.metrics.update(METRICS)
    return sign(KEY, STATEMENT, statement.SerializeToString(deterministic=True))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation.json"
    write_json(path, envelope(stated(Federation())))
    return path


def test_the_metrics_of_a_statement_are_written_in_alphabetical_order(written: Path) -> None:
    assert list(json.loads(written.read_text())["statement"]["metrics"]) == sorted(METRICS)


def test_a_statement_whose_metrics_stand_in_another_order_is_the_same(written: Path) -> None:
    values = json.loads(written.read_text())
    for order in itertools.islice(itertools.permutations(METRICS), 0, None, 7):
        values["statement"]["metrics"] = {name: METRICS[name] for name in order}
        write_json(written, values)
        assert checked(written).exit_code == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"f1": 1.0', '"f1": 1'),
        ('"f1": 1.0', '"f1": true'),
        ('"f1": 1.0', '"f1": 1.5'),
        ('"f1": 1.0', '"f2": 1.0'),
        ('"f1": 1.0', '"f1": 1.5,\n      "f1": 1.0'),
        ('"f1": 1.0', '"f1":  1.0'),
        ('"f1": 1.0', '"f1": 1.0,\n      "g": 1.0'),
    ],
)
def test_a_metric_of_another_value_or_spelling_is_found(written: Path, old: str, new: str) -> None:
    text = written.read_text()
    assert old in text
    written.write_text(text.replace(old, new))
    result = checked(written)
    assert result.exit_code == 1
    assert "what stands beside the payload is not what was signed" in result.output


def test_a_run_with_several_metrics_verifies_in_every_process(tmp_path: Path) -> None:
    """The order of protobuf's maps hangs on where a process lies in memory and on its hash seed."""
    folder = tmp_path / "run"
    write_run(folder, Federation())
    write_json(folder / "evaluation.json", envelope(stated(Federation())))
    command = [sys.executable, "-m", "cairn", "verify", str(folder / "evaluation.json")]
    for seed in range(PROCESSES):
        done = subprocess.run(
            [*command, "--key", KEY_TEXT],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
        assert done.returncode == 0, done.stdout
