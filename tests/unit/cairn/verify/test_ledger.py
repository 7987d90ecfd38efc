"""`cairn verify` on the ledger of jobs whose owners take turns in groups."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from cairn.cli.verify import verify
from tests.unit.cairn.verify.recorded import Chain, write_lines

GROUPS = [["alice", "bob", "carol"], ["dave", "erin", "frank"]]


def checked(tmp_path: Path, groups: object, *cohorts: object) -> tuple[int, str]:
    """The exit code and what is printed for a ledger in which a job opens rounds of these cohorts."""
    chain = Chain()
    chain.add("job", job="others", job_digest="cd" * 32)
    chain.add("job", job="tumours", job_digest="ab" * 32, groups=groups)
    for number, cohort in enumerate(cohorts, 1):
        everybody = [name for group in GROUPS for name in group]
        chain.add("open", job="others", round=number, manifest_digest="", cohort=everybody)
        chain.add("open", job="tumours", round=number, manifest_digest="", cohort=cohort)
    write_lines(tmp_path / "ledger.jsonl", chain.rows)
    result = CliRunner().invoke(verify, [str(tmp_path / "ledger.jsonl")])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_rounds_that_are_each_of_one_group_are_right(tmp_path: Path) -> None:
    code, output = checked(tmp_path, GROUPS, GROUPS[0], GROUPS[1], GROUPS[0][1:])
    assert code == 0, output
    assert "the 3 cohorts of 'tumours' are each of one of its groups" in output
    assert "others" not in output


@pytest.mark.parametrize(
    ("groups", "cohort"),
    [
        (GROUPS, ["alice", "bob", "carol", "dave"]),
        (GROUPS, ["carol", "dave"]),
        (GROUPS, None),
        ([["alice", "bob"], 5], ["alice", "dave"]),
        (None, ["alice", "bob"]),
        (7, ["alice", "bob"]),
    ],
    ids=str,
)
def test_a_round_that_mixes_groups_is_found_by_its_entry(
    tmp_path: Path, groups: object, cohort: object
) -> None:
    code, output = checked(tmp_path, groups, ["alice", "bob"], cohort)
    assert code == 1
    number = 6 if isinstance(groups, list) else 4
    assert f"entry {number} opens a round of 'tumours' with owners of more than one" in output
