"""`cairn verify` on a release statement and a copy of the aggregator's ledger."""

from pathlib import Path

import pytest

from cairn.protocol.aggregation import Aggregation, aggregation_to_pb
from cairn.protocol.statements import STATEMENT, envelope, head_envelope, sign
from cairn.v1 import round_pb2 as pb
from tests.unit.cairn.verify.recorded import (
    KEY,
    Federation,
    digest,
    in_base64,
    owners_chain,
    signed_head,
    write_database,
    write_json,
    write_lines,
    write_run,
)
from tests.unit.cairn.verify.test_verify import checked


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", Federation())
    return tmp_path / "run"


def restated(**changes: object) -> pb.Signed:
    """The statement of round 2, signed by the aggregator with other words."""
    statement = pb.ReleaseStatement.FromString(Federation().statements[2].body)
    for field in changes:
        statement.ClearField(field)
    statement.MergeFrom(pb.ReleaseStatement(**changes))  # type: ignore[arg-type]  # the test's own
    return sign(KEY, STATEMENT, statement.SerializeToString())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"round": 3}, "entry 7 of ledger.jsonl has round 2 instead of 3"),
        ({"job": "other"}, "has job 'tumours' instead of 'other'"),
        ({"release_digest": digest("other")}, "entry 7 of ledger.jsonl has release_digest"),
        ({"manifest_digest": digest("other")}, "entry 7 of ledger.jsonl has manifest_digest"),
        ({"base_digest": digest("other")}, "entry 7 of ledger.jsonl has base_digest"),
        ({"ledger_head": digest("other")}, "entry 6 of ledger.jsonl does not have the head"),
        ({"ledger_number": 5}, "entry 5 of ledger.jsonl does not have the head"),
        ({"ledger_number": 9}, "ends at entry 9, before entry 10"),
        ({"exclusions": []}, "the cohort of entry 6 of ledger.jsonl has 4"),
        (
            {"exclusions": [pb.Exclusion(owner="eve", reason=pb.REASON_DEADLINE)]},
            "excludes an owner that is not in the cohort of entry 6",
        ),
        ({"commitments": [digest("a"), digest("b")]}, "has 2 commitments and a floor of 3"),
        (
            {
                "aggregation": aggregation_to_pb(
                    Aggregation(rule=pb.RULE_BUCKETED_MEDIAN, rule_numbers={"bucket": 3})
                ),
                "draw_seed": digest("another draw"),
            },
            "another draw than entry 6 of ledger.jsonl commits to",
        ),
        ({"phase": pb.PHASE_EVALUATE}, "has phase 'train' instead of 'evaluate'"),
    ],
    ids=str,
)
def test_a_statement_that_the_ledger_does_not_bear_out_is_refused(
    run: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    path = tmp_path / "statement.json"
    write_json(path, envelope(restated(**changes)))
    result = checked(path, "--ledger", run)
    assert result.exit_code == 1
    assert words in result.output


def test_a_second_release_of_one_round_is_found(run: Path) -> None:
    chain = Federation().ledger
    chain.add(
        "release", job="tumours", round=2, phase="train", release_digest="ab" * 32, contributors=3
    )
    write_lines(run / "ledger.jsonl", chain.rows)
    write_json(run / "ledger_head.json", head_envelope(signed_head(chain)))
    result = checked(run / "release.json", "--ledger", run)
    assert result.exit_code == 1
    assert "entry 10 of ledger.jsonl is another release of the same round" in result.output


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"loss": 0.125}},
        {"commitments": [digest("a"), digest("b"), digest("c")]},
        {"weighting": pb.WEIGHTING_EXAMPLES},
        {"sealed_unix_ms": 1_700_000_000_001},
        {"software": "0.2.1"},
        {"exclusions": [pb.Exclusion(owner="dora", reason=pb.REASON_TASK_FAILED)]},
    ],
    ids=str,
)
def test_a_second_statement_of_a_recorded_release_is_refused(
    run: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    words = "entry 7 of ledger.jsonl records another statement of the same release"
    write_json(tmp_path / "statement.json", envelope(restated(**changes)))
    result = checked(tmp_path / "statement.json", "--ledger", run)
    assert result.exit_code == 1
    assert f"FAILED statement.json: {words}" in result.output
    write_json(run / "release.json", envelope(restated(**changes)))
    result = checked(run)
    assert result.exit_code == 1
    assert f"FAILED release.json: {words}" in result.output


def test_a_second_statement_of_an_evaluation_is_refused(run: Path) -> None:
    evaluation = pb.ReleaseStatement.FromString(Federation().statements[3].body)
    evaluation.metrics["loss"] = 0.125
    write_json(
        run / "evaluation.json", envelope(sign(KEY, STATEMENT, evaluation.SerializeToString()))
    )
    result = checked(run)
    assert result.exit_code == 1
    assert (
        "FAILED evaluation.json: entry 9 of ledger.jsonl records another statement" in result.output
    )


def test_a_statement_that_an_owner_alone_was_given_is_refused(run: Path, tmp_path: Path) -> None:
    statements = list(Federation().statements)
    statements[2] = restated(metrics={"loss": 0.125})
    chain = owners_chain("alice", statements)
    write_database(tmp_path / "alice" / "owner.sqlite", chain.rows)
    assert in_base64(statements[2]).encode() in chain.rows[12][2]
    result = checked(tmp_path / "alice", "--ledger", run)
    assert result.exit_code == 1
    assert "FAILED owner.sqlite, entry 13: entry 7 of ledger.jsonl records another" in result.output
