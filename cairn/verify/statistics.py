"""Checks the figures of a job of statistics against its release. Pure."""

import json
from functools import partial
from typing import Any

from cairn.diagnostics.findings import Finding, failed, ok
from cairn.protocol.statistics import Statistics, statistics_from_words
from cairn.protocol.summary import report_of
from cairn.runtime.buffer import Buffer
from cairn.verify.ledger import LedgerCopy, attempted


def statistics_of(job: str, ledger: LedgerCopy) -> tuple[Statistics | None, list[Finding]]:
    """What a job counts, as the aggregator recorded it; None where it counts nothing."""
    for entry in ledger.entries:
        if entry.kind == "job" and entry.facts.get("job") == job and "statistics" in entry.facts:
            words = entry.facts["statistics"]
            where = f"{ledger.name}, entry {entry.number}"
            return attempted(where, partial(statistics_from_words, words))
    return None, []


def check_figures(
    name: str, text: bytes, job: str, statistics: Statistics, payload: Buffer
) -> Finding:
    """Whether the file has the figures of the released counts, and no others."""
    report = report_of(job, statistics, payload)
    if text == (json.dumps(report, indent=2) + "\n").encode():
        return ok(name, f"its figures are those of the release of {job}")
    column = _first_other(text, report)
    where = f", from the column {column} on" if column else ""
    return failed(name, f"its figures are not those of the release of {job}{where}")


def _first_other(text: bytes, report: dict[str, Any]) -> str | None:
    """The first column of which the file says something else; None where it is no report, or all else differs."""
    try:
        columns = json.loads(text)["columns"]
        return next((n for n, figures in report["columns"].items() if columns[n] != figures), None)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
