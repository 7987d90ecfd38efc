"""What is held against the ledger that a run has beside its files."""

from cairn.diagnostics.findings import Grade
from cairn.ledger.chain import Entry
from cairn.verify.ledger import LedgerCopy
from cairn.verify.run import check_no_evaluation
from tests.unit.cairn.verify.recorded import Chain


def copied(chain: Chain) -> LedgerCopy:
    entries = tuple(Entry(*row) for row in chain.rows)
    return LedgerCopy("ledger.jsonl", entries, goes_on=False)


def test_an_evaluation_is_missing_where_one_was_released_and_not_where_it_was_only_opened() -> None:
    chain, facts = Chain(), {"job": "tumours", "round": 1, "phase": "evaluate"}
    chain.add("open", **facts)
    chain.add("abort", **facts)
    chain.add("release", **{**facts, "job": "another"})
    assert list(check_no_evaluation("evaluation.json", "tumours", copied(chain))) == []
    chain.add("release", **facts)
    (finding,) = check_no_evaluation("evaluation.json", "tumours", copied(chain))
    assert finding.grade is Grade.FAILED
    assert "entry 4 of ledger.jsonl is an evaluation" in finding.sentence
