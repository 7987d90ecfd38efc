"""Statistics in a federation of real processes: the figures are NumPy's, and nothing small is among them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cairn.protocol.statistics import STEPS
from tests.hostile.checks import owner_entries
from tests.scenarios.federation import TASK, Federation
from tests.scenarios.processes import Node, until
from tests.scenarios.test_verify import verify

MakeFederation = Callable[..., Federation]

THREE = {"alice": 1.0, "bob": -0.5, "carol": 0.25}
COLUMNS = """
import numpy as np


def columns(data):
    with np.load(data.train / "patients.npz") as file:
        return dict(file)


task = cairn.Task(columns=columns, """
JOB = """
name = "{name}"
task = "halving"
owners = ["alice", "bob", "carol"]
round_deadline_seconds = 60

[statistics]
min_cell = 10

[statistics.columns]
{columns}
"""
AGE = "age = { low = 0, high = 100, bins = 10 }"
SMOKES = "smokes = { low = 0, high = 1, bins = 2 }"
RARE = "rare = { low = 0, high = 1, bins = 2 }"
PATIENTS = 60  # of each owner


def patients(seed: int) -> dict[str, NDArray[np.float64]]:
    """Ages of which some are missing and some out of range, a common property, and one that few have."""
    random = np.random.default_rng(seed)
    age = random.normal(60, 15, PATIENTS)
    age[:3] = [np.nan, -1, 130]
    smokes, rare = np.zeros(PATIENTS), np.zeros(PATIENTS)
    smokes[: 15 + seed], rare[seed] = 1, 1
    return {"age": age, "smokes": smokes, "rare": rare}


@pytest.fixture
def federation(federate: MakeFederation) -> Federation:
    made = federate(THREE)
    task = TASK.replace("task = cairn.Task(", COLUMNS.lstrip())
    (made.home / "task.py").write_text(task.replace("examples=1)", f"examples={PATIENTS})"))
    for seed, owner in enumerate(THREE, 1):
        file: Any = made.home / "data" / owner / "patients.npz"
        np.savez(file, allow_pickle=False, **patients(seed))
    return made


def counting(federation: Federation, name: str, *columns: str) -> tuple[Node, Path]:
    path, out = federation.home / f"{name}.toml", federation.home / name
    path.write_text(JOB.format(name=name, columns="\n".join(columns)))
    return federation.run_job(path, out), out


def read(out: Path) -> dict[str, Any]:
    columns: dict[str, Any] = json.loads((out / "statistics.json").read_text())["columns"]
    return columns


def pooled(name: str) -> NDArray[np.float64]:
    values = np.concatenate([patients(seed)[name] for seed in (1, 2, 3)])
    there: NDArray[np.float64] = values[~np.isnan(values)]
    return there


def check_age(figures: dict[str, Any]) -> None:
    """The figures of everybody's ages, by NumPy, with what its small cells hide."""
    ages = pooled("age")
    clamped = np.clip(ages, 0, 100)
    assert figures["count"] == len(ages) == 3 * PATIENTS - 3
    assert figures["mean"] == pytest.approx(clamped.mean(), abs=100 / STEPS / 2)
    assert figures["std"] == pytest.approx(clamped.std(), abs=100 / STEPS / 2)
    expected, _ = np.histogram(ages, 10, (0, 100))
    shown = [cell for cell in figures["histogram"] if cell is not None]
    assert len(shown) < 10
    for cell, true in zip(figures["histogram"], expected, strict=True):
        assert cell in {None, true}
        assert cell is None or cell >= 10
    assert (figures["below"], figures["above"]) == (None, None)  # three patients each


def test_figures_are_numpys_over_all_owners_and_are_what_verify_finds(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation.aggregator()
    federation.owners()
    with monkeypatch.context() as environment:  # killed before the figures are written
        environment.setenv("CAIRN_FAILPOINTS", "coordinator.checkpoint.after=kill")
        environment.setenv("CAIRN_FAILPOINTS_IN", "ward")
        killed, out = counting(federation, "figures", AGE, SMOKES, RARE)
        assert killed.ends() != 0
    assert not (out / "statistics.json").exists()
    coordinator, out = counting(federation, "figures", AGE, SMOKES, RARE)
    assert coordinator.ends() == 0, coordinator.output()

    figures = read(out)
    check_age(figures["age"])
    smokers = int(pooled("smokes").sum())
    assert figures["smokes"]["histogram"] == [3 * PATIENTS - smokers, smokers]
    assert figures["smokes"]["mean"] == pytest.approx(smokers / (3 * PATIENTS), abs=1 / STEPS)
    assert figures["rare"]["count"] == 3 * PATIENTS
    assert figures["rare"]["histogram"] == [None, None]  # three have it
    assert (figures["rare"]["mean"], figures["rare"]["variance"]) == (None, None)
    assert f"Finished. Statistics: {out / 'statistics.json'}" in coordinator.output()
    (sent,) = [e for e in owner_entries(federation.files / "bob/state") if e.kind == "sent"]
    assert (sent.facts["columns"], sent.facts["examples"]) == (["age", "rare", "smokes"], PATIENTS)

    code, output = verify(federation, out)
    assert code == 0, output
    assert "statistics.json: its figures are those of the release of figures" in output
    text = (out / "statistics.json").read_text()
    (out / "statistics.json").write_text(text.replace(f" {smokers}\n", f" {smokers + 1}\n"))
    code, output = verify(federation, out)
    assert code == 1
    assert "from the column smokes on" in output


def test_a_column_is_counted_once_and_a_training_afterwards_is_as_before(
    federation: Federation,
) -> None:
    federation.aggregator()
    owners = federation.owners()
    first, _ = counting(federation, "first", AGE)
    assert first.ends() == 0, first.output()
    for name, column in (("again", AGE), ("shifted", AGE.replace("100", "99"))):
        refused, out = counting(federation, name, column)
        assert refused.ends() == 1
        assert (
            "the column age of the task halving was released as often as the aggregator's file allows"
            in refused.output()
        )
        assert not (out / "statistics.json").exists()
    unknown, _ = counting(federation, "unknown", "weight = { low = 0, high = 200 }")
    assert unknown.ends() == 1
    said = "the job counts the column weight, and the task's columns returned age, rare, smokes"
    # The first that fails ends the round for the others.
    until(lambda: any(said in owner.output() for owner in owners.values()), said)
    assert said not in unknown.output()

    training = federation.coordinator(rounds=1)
    assert training.ends() == 0, training.output()
    federation.check_model(list(THREE))
    (line,) = federation.history()
    assert line["metrics"]["value"] == pytest.approx(0.25, abs=1e-3)
