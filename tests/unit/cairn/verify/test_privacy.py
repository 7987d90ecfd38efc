"""`cairn verify` on private jobs: epsilon is recomputed, from the ledger and from what an owner was counted in."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cairn.cli.verify import verify
from cairn.ledger.chain import Entry
from cairn.protocol.aggregation import Aggregation, aggregation_to_pb
from cairn.protocol.statements import STATEMENT, sign
from cairn.v1 import round_pb2 as pb
from cairn.verify.ledger import LedgerCopy
from cairn.verify.owner import OwnerRecord
from cairn.verify.statement import VerifiedStatement, check_recorded
from tests.unit.cairn.verify.recorded import (
    KEY,
    OWNERS,
    Chain,
    digest,
    owners_chain,
    receipt_of,
    write_lines,
)

NUMBERS = {"norm": 1.0, "noise": 2.0, "epsilon": 8.0, "delta": 1e-5}
PRIVATE = Aggregation(rule=pb.RULE_PRIVATE_MEAN, rule_numbers=NUMBERS)
BUDGET = {"noise": 2.0, "epsilon": 8.0, "delta": 1e-5}
# What so many releases of noise 2 tell at delta 1e-5, by the formula of the paper's Proposition 12 and SciPy's search.
TOLD = [0.0, 2.165715545175, 3.188971158883, 4.011310056658, 4.728386984943]
COHORT = [*OWNERS, "dora"]


def ledger(
    releases: Sequence[dict[str, Any]], budget: object = BUDGET, cohort: object = COHORT
) -> Chain:
    """Of a job with a release for each of these facts; all of the cohort count, if nothing else is said."""
    chain = Chain()
    told = {} if budget is None else {"privacy": budget}
    chain.add("job", job="tumours", job_digest="ab" * 32, **told)
    for number, said in enumerate(releases, 1):
        manifest = f"{number:064x}"
        chain.add("open", job="tumours", round=number, manifest_digest=manifest, cohort=cohort)
        facts = {"phase": "train", "contributors": 4, "delta": 1e-5, **said}
        chain.add("release", job="tumours", manifest_digest=manifest, **facts)
    return chain


def checked(tmp_path: Path, chain: Chain) -> tuple[int, str]:
    write_lines(tmp_path / "ledger.jsonl", chain.rows)
    result = CliRunner().invoke(verify, [str(tmp_path / "ledger.jsonl")])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def saying(*epsilons: float, **facts: object) -> list[dict[str, Any]]:
    return [{"epsilon": epsilon, **facts} for epsilon in epsilons]


def test_what_the_releases_told_is_recomputed_and_said(tmp_path: Path) -> None:
    code, output = checked(tmp_path, ledger(saying(*TOLD[1:4])))
    assert code == 0, output
    assert "epsilon 4.011 of 8 (delta 1e-05) after 3 releases" in output


def test_where_some_were_left_out_the_owner_that_was_counted_most_may_be_one_of_them(
    tmp_path: Path,
) -> None:
    few = {"contributors": 3}
    for told in (TOLD[1:4], [TOLD[1], TOLD[1], TOLD[2]], [TOLD[1], TOLD[2], TOLD[2]]):
        code, output = checked(tmp_path, ledger(saying(*told, **few)))
        assert code == 0, output


def test_a_round_whose_result_left_its_range_may_count_and_another_does_not(tmp_path: Path) -> None:
    for reason, code in (("NON_FINITE", 0), ("ABORTED", 1)):
        chain = ledger(saying(TOLD[1]))
        for number, kind, facts in (
            (2, "abort", {"reason": reason}),
            (3, "release", {"epsilon": TOLD[3], "delta": 1e-5, "contributors": 4}),
        ):
            said = {"job": "tumours", "round": number, "manifest_digest": f"{number:064x}"}
            chain.add("open", **said, cohort=COHORT)
            chain.add(kind, **said, phase="train", **facts)
        assert checked(tmp_path, chain)[0] == code


@pytest.mark.parametrize(
    ("releases", "entry", "said"),
    [
        (saying(TOLD[1], TOLD[1]), 5, "epsilon 2.16572, recomputed 3.18897"),
        (saying(TOLD[1], TOLD[3]), 5, "epsilon 4.01131, recomputed 3.18897"),
        (saying(2.0), 3, "epsilon 2, recomputed 2.16572"),
        (saying(TOLD[1], 3.2), 5, "epsilon 3.2, recomputed"),
        (saying(TOLD[1], TOLD[2], TOLD[1], contributors=3), 7, "recomputed 3.18897 or 4.01131"),
        ([{}], 3, "its epsilon is None, no number"),
        ([{"epsilon": "much"}], 3, "its epsilon is 'much', no number"),
        ([{"epsilon": True}], 3, "no number"),
        ([{"epsilon": TOLD[1], "delta": 1e-6}], 3, "at delta 1e-06; the job allows 8 at 1e-05"),
    ],
    ids=str,
)
def test_a_release_that_says_anything_else_than_it_tells_is_found_by_its_entry(
    tmp_path: Path, releases: list[dict[str, Any]], entry: int, said: str
) -> None:
    code, output = checked(tmp_path, ledger(releases))
    assert code == 1
    assert f"entry {entry}: " in output
    assert said in output


def test_a_release_beyond_the_budget_is_found(tmp_path: Path) -> None:
    code, output = checked(tmp_path, ledger(saying(*TOLD[1:3]), {**BUDGET, "epsilon": 3.0}))
    assert code == 1
    assert "entry 5: it has epsilon 3.18897 at delta 1e-05; the job allows 3 at 1e-05" in output


def test_a_job_that_is_registered_anew_does_not_begin_to_count_anew(tmp_path: Path) -> None:
    chain = ledger(saying(TOLD[1]))
    chain.add("job", job="tumours", job_digest="ab" * 32, privacy=BUDGET)
    chain.add("open", job="tumours", round=2, manifest_digest="b" * 64, cohort=COHORT)
    facts = {"phase": "train", "contributors": 4, "delta": 1e-5, "epsilon": TOLD[1]}
    chain.add("release", job="tumours", manifest_digest="b" * 64, **facts)
    code, output = checked(tmp_path, chain)
    assert code == 1
    assert "entry 4: 'tumours' is registered twice" in output


@pytest.mark.parametrize(
    ("budget", "cohort", "said"),
    [
        (None, COHORT, "'tumours' has no budget, so it has no epsilon either"),
        (7, COHORT, "the job's budget is no table"),
        ({**BUDGET, "noise": 0}, COHORT, "noise = 0 must be 0.01 to 10000"),
        ({**BUDGET, "delta": "x"}, COHORT, "its delta is 'x', no number"),
        ({**BUDGET, "noise": 10**400}, COHORT, "too large a number"),
        ({"noise": 2.0}, COHORT, "its epsilon is None, no number"),
        (BUDGET, 7, "no entry says which owners the round had"),
        (BUDGET, [], "recomputed"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_ledger_that_nobody_wrote_so_is_no_error_of_ours(
    tmp_path: Path, budget: object, cohort: object, said: str
) -> None:
    code, output = checked(tmp_path, ledger(saying(TOLD[1]), budget, cohort))
    assert code == 1
    assert said in output


def statement_of(number: int, told: float, ledger_number: int = 0, head: bytes = b"h" * 32) -> Any:
    manifest = digest(f"manifest {number}")
    return pb.ReleaseStatement(
        manifest_digest=manifest,
        federation="clinics",
        job="tumours",
        round=number,
        phase=pb.PHASE_TRAIN,
        release_digest=digest(f"release {number}"),
        base_digest=digest(f"release {number - 1}"),
        contributors=3,
        aggregation=aggregation_to_pb(PRIVATE),
        weighting=pb.WEIGHTING_EQUAL,
        encoding=pb.ENCODING_WHOLE,
        ledger_head=head,
        ledger_number=ledger_number,
        floor=3,
        commitments=sorted(sha256(receipt_of(o, manifest).body).digest() for o in OWNERS),
        privacy=pb.Privacy(epsilon=told, delta=1e-5),
    )


@pytest.mark.parametrize(
    ("second", "is_good"), [(TOLD[2], True), (TOLD[3], True), (TOLD[1], False)]
)
def test_no_statement_says_less_than_the_releases_tell_that_counted_an_owner(
    second: float,
    is_good: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    bodies = [statement_of(1, TOLD[1]), statement_of(2, second)]
    signed = [sign(KEY, STATEMENT, body.SerializeToString()) for body in bodies]
    entries = tuple(Entry(*row) for row in owners_chain("alice", signed).rows)
    findings = OwnerRecord(LedgerCopy("owner.sqlite", entries), KEY.public_key()).findings
    assert all(finding.good for finding in findings) == is_good
    if not is_good:
        assert "but the 2 releases that counted this owner tell 3.18897" in findings[0].sentence


@pytest.mark.parametrize(
    ("budget", "recorded", "said"),
    [
        (BUDGET, {"epsilon": TOLD[1], "delta": 1e-5}, "is entry 3 of ledger.jsonl"),
        (BUDGET, {"epsilon": TOLD[2], "delta": 1e-5}, "epsilon 3.188971158883 instead of 2.1657"),
        (BUDGET, {}, "epsilon None instead of"),
        ({**BUDGET, "noise": 3.0}, {"epsilon": TOLD[1], "delta": 1e-5}, "another privacy budget"),
        (None, {"epsilon": TOLD[1], "delta": 1e-5}, "another privacy budget"),
    ],
    ids=str,
)
def test_a_statement_and_the_ledger_say_the_same_of_privacy(
    budget: object, recorded: dict[str, float], said: str
) -> None:
    chain = ledger([], budget)
    opening = statement_of(1, TOLD[1])
    facts = {
        "job": "tumours",
        "round": 1,
        "phase": "train",
        "manifest_digest": opening.manifest_digest.hex(),
    }
    chain.add("open", **facts, cohort=OWNERS)
    statement = statement_of(1, TOLD[1], len(chain.rows), chain.head)
    signed = sign(KEY, STATEMENT, statement.SerializeToString())
    chain.add(
        "release",
        **facts,
        **recorded,
        release_digest=statement.release_digest.hex(),
        base_digest=statement.base_digest.hex(),
        contributors=3,
        statement_digest=sha256(signed.body).hexdigest(),
    )
    copy = LedgerCopy("ledger.jsonl", tuple(Entry(*row) for row in chain.rows))
    stated = VerifiedStatement.of(KEY.public_key(), signed)
    (finding,) = check_recorded("release.json", stated, copy)
    assert said in finding.sentence
