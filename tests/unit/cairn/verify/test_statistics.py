"""Figures of statistics against the release that they are to be made of."""

import json
from typing import Any

import pytest

from cairn.diagnostics.findings import Grade
from cairn.ledger.chain import GENESIS, Entry
from cairn.protocol.statistics import Column, Statistics, counts_of, schema_of, statistics_in_words
from cairn.protocol.summary import report_of
from cairn.verify.ledger import LedgerCopy
from cairn.verify.statistics import check_figures, statistics_of

STATISTICS = Statistics((Column("age", 0.0, 100.0, 2), Column("size", 0.0, 1.0, 1)), 10)
PAYLOAD = bytearray(schema_of(STATISTICS).total_bytes)
for counts in counts_of(STATISTICS, PAYLOAD).values():
    counts.moments[0], counts.histogram[1] = 30, 30
REPORT = report_of("figures", STATISTICS, PAYLOAD)
TEXT = (json.dumps(REPORT, indent=2) + "\n").encode()


def checked(text: bytes) -> tuple[Grade, str]:
    finding = check_figures("statistics.json", text, "figures", STATISTICS, PAYLOAD)
    return finding.grade, finding.sentence


def test_the_figures_of_a_release_are_found_good() -> None:
    assert checked(TEXT)[0] is Grade.OK


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (TEXT.replace(b'"mean": 50.0', b'"mean": 51.0'), "from the column age on"),
        (TEXT.replace(b'"high": 1.0', b'"high": 2.0'), "from the column size on"),
        (TEXT.replace(b'"min_cell": 10', b'"min_cell": 2'), "not those of the release of figures"),
        (TEXT[:-2], "not those"),
        (b"", "not those"),
        (b"[]", "not those"),
        (b'{"columns": {"age": 1}}', "from the column age on"),
        (b'{"columns": []}', "not those"),
        (b"[" * 100_000, "not those"),
        (b"\xff", "not those"),
    ],
)
def test_any_others_are_found_out(text: bytes, where: str) -> None:
    grade, sentence = checked(text)
    assert grade is Grade.FAILED
    assert where in sentence


def ledger(**facts: Any) -> LedgerCopy:
    body = json.dumps({"job": "figures", **facts}, sort_keys=True, separators=(",", ":")).encode()
    return LedgerCopy("ledger.jsonl", (Entry(1, "job", body, GENESIS),))


def test_what_a_job_counts_is_read_from_the_ledger() -> None:
    words = json.loads(json.dumps(statistics_in_words(STATISTICS)))
    assert statistics_of("figures", ledger(statistics=words)) == (STATISTICS, [])
    assert statistics_of("another", ledger(statistics=words)) == (None, [])
    assert statistics_of("figures", ledger()) == (None, [])


def test_a_ledger_that_says_something_else_in_its_place_is_found_out() -> None:
    statistics, (finding,) = statistics_of("figures", ledger(statistics="all"))
    assert statistics is None
    assert (finding.grade, finding.check) == (Grade.FAILED, "ledger.jsonl, entry 1")
