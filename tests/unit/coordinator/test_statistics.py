"""What a job's file may say of statistics, and the table that a person is shown."""

from pathlib import Path
from typing import Any

import pytest

from cairn.errors import UsageError
from cairn.protocol.statistics import Column, Statistics, counts_of, schema_of
from cairn.protocol.summary import report_of
from cairn.v1 import round_pb2 as pb
from coordinator.job import planned
from coordinator.settings import JobSettings
from coordinator.statistics import table_of

JOB = """
name = "figures"
task = "tumours"
owners = ["alice", "bob", "carol"]

[statistics]
min_cell = 12

[statistics.columns]
age = { low = 0, high = 120 }
"mean radius" = { low = 0.5, high = 30, bins = 20 }
"""


def load(directory: Path, text: str) -> JobSettings:
    path = directory / "job.toml"
    path.write_text(text)
    return JobSettings.load(path)


def test_a_job_of_statistics_needs_neither_model_nor_rounds(tmp_path: Path) -> None:
    job = load(tmp_path, JOB)
    assert job.statistics is not None
    counted = job.statistics.counted
    assert counted == Statistics(
        (Column("age", 0.0, 120.0, 10), Column("mean radius", 0.5, 30.0, 20)), 12
    )
    spec = planned(job, "clinics", schema_of(counted)).spec
    assert (spec.rounds, spec.statistics) == (1, counted)
    assert (spec.aggregation.content, spec.aggregation.rule) == (
        pb.CONTENT_STATISTICS,
        pb.RULE_SUM,
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[statistics]", 'model = "m.safetensors"\nrounds = 3\n[statistics]', "take model, rounds out, or statistics"),
        ("[statistics]", 'content = "weights"\n[statistics]', "trains no model: take content out"),
        ("[statistics]", "evaluate = true\n[statistics]", "take evaluate out"),
        ("[statistics]", "[settings]\nlr = 1\n[statistics]", "take settings out"),
        ("min_cell = 12", "min_cel = 12", "unknown key statistics.min_cel; did you mean min_cell?"),
        ("min_cell = 12", "min_cell = 1", "statistics.min_cell = 1"),
        ("low = 0,", "", "the key statistics.columns.age.low is missing"),
        ("low = 0,", "low = 0, bin = 3,", "unknown key statistics.columns.age.bin"),
        ("high = 120", "high = -1", "the column age has low = 0 and high = -1; the smaller comes first"),
        ("bins = 20", "bins = 2000", "statistics.columns.mean radius.bins = 2000"),
        ("bins = 20", "bins = 0", "bins = 0"),
        ("low = 0,", "low = nan,", "statistics.columns.age.low = nan"),
        ("age =", '"a/ge" =', "a column is called 'a/ge'"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_job_of_statistics_is_named(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    with pytest.raises(UsageError) as mistake:
        load(tmp_path, JOB.replace(old, new))
    assert words in str(mistake.value)


@pytest.mark.parametrize(
    "given", [{"model": Path("m"), "rounds": None}, {"model": None, "rounds": 2}]
)
def test_the_command_line_gives_it_no_model_and_no_rounds(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    job = load(tmp_path, JOB)
    assert job.changed(model=None, rounds=None) == job
    with pytest.raises(UsageError, match="leave --initial-model and --rounds out"):
        job.changed(**given)


def test_other_jobs_have_a_model(tmp_path: Path) -> None:
    text = JOB.partition("[statistics]")[0] + "rounds = 3"
    with pytest.raises(UsageError, match="the key model is missing"):
        load(tmp_path, text)


def test_a_job_whose_content_is_statistics_is_told_of_the_words_there_are(tmp_path: Path) -> None:
    text = JOB.partition("[statistics]")[0] + 'rounds = 3\nmodel = "m"\ncontent = "statistics"'
    with pytest.raises(UsageError, match="must be 'weights' or 'gradients'"):
        load(tmp_path, text)


def test_the_table_has_a_line_for_each_column_and_says_what_is_suppressed() -> None:
    statistics = Statistics((Column("age", 0.0, 100.0, 1), Column("size", 0.0, 4.0, 1)), 10)
    payload = bytearray(schema_of(statistics).total_bytes)
    counts = counts_of(statistics, payload)
    counts["age"].moments[:] = [20, 0, 20 * (1 << 26)]  # an eighth of the range from the middle
    counts["age"].histogram[:] = [0, 20, 0]
    counts["size"].moments[:] = counts["size"].histogram[:] = -1
    heads, age, size = table_of(report_of("figures", statistics, payload))
    assert heads.split() == ["column", "count", "mean", "std"]
    assert age.split() == ["age", "20", "50", "12.5"]
    assert size.split() == ["size", "suppressed", "suppressed", "suppressed"]
