"""Reads what `cairn verify` is pointed at, and runs the checks that fit it. Writes nothing."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cairn.diagnostics.findings import Finding, Grade, failed
from cairn.errors import InvalidMessage, UsageError
from cairn.ledger.files import (
    LEDGER_FILE,
    MAX_LEDGER_BYTES,
    find_ledger,
    read_ledger,
    read_refusals,
)
from cairn.model.safetensors_reader import read_model
from cairn.protocol.statistics import schema_of
from cairn.runtime.foreign_files import content_of, lines_of
from cairn.storage.directory import OWNER_DATABASE
from cairn.v1 import round_pb2 as pb
from cairn.verify.ledger import LedgerCopy, attempted, check_ledger, check_same_ledger
from cairn.verify.owner import OwnerRecord
from cairn.verify.reading import blake3_of, no_key, read_copy, read_statement
from cairn.verify.run import (
    check_best,
    check_evaluation,
    check_history,
    check_last,
    check_model,
    check_no_evaluation,
)
from cairn.verify.statement import check_recorded
from cairn.verify.statistics import check_figures, statistics_of

RELEASE, EVALUATION, MODEL = "release.json", "evaluation.json", "model.safetensors"
STATISTICS = "statistics.json"
BEST, BEST_MODEL = "best.json", "best.safetensors"
HISTORY, CHECKPOINT = "history.jsonl", "checkpoint.json"
_FIGURES_BYTES = (
    1 << 26
)  # a thousand columns of a thousand cells, each on a line, have a third of it
_LINE_BYTES = 1 << 20  # of a history, which may name every owner and 64 metrics


@dataclass(frozen=True)
class Evidence:
    """What is checked against: the aggregator's key, a copy of its ledger and release statements."""

    key: Ed25519PublicKey | None = None
    ledger: Path | None = None
    statements: Sequence[Path] = ()

    @property
    def pinned(self) -> Ed25519PublicKey:
        if self.key is None:
            raise no_key()
        return self.key


def verify(path: Path, against: Evidence) -> list[Finding]:
    """Check the run's folder, the statement or the ledger at `path`.

    Raises UsageError where that is none of these, or where the key is needed and not there.
    """
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or directory")
    if path.is_dir() and any((path / n).exists() for n in (RELEASE, MODEL, CHECKPOINT)):
        _check_unused(against)
        return list(_run(path, against))
    if path.suffix == ".json" and not path.is_dir():
        _check_unused(against)
        return list(_statement_file(path, against))
    try:
        file = find_ledger(path)
    except UsageError:
        raise UsageError(
            f"{path} is nothing that can be verified: expected a run's folder, a release statement"
            " (.json), or a ledger (.jsonl, or a node's state directory)"
        ) from None
    if file.name == OWNER_DATABASE:
        return list(_owner(file, against))
    _check_unused(against)
    return list(_aggregator(file, against))


def _check_unused(against: Evidence) -> None:
    if against.statements:
        raise UsageError(
            "--statement goes with an owner's ledger: it tells which of them counted it"
        )


def _run(folder: Path, against: Evidence) -> Iterator[Finding]:
    key = against.pinned
    goes_on = not _is_completed(folder)
    ledger, findings = read_copy(folder / LEDGER_FILE, key, head_expected=True, goes_on=goes_on)
    yield from findings
    longer, findings = _compared(ledger, against)
    yield from findings
    ledger = replace(longer, goes_on=ledger.goes_on)
    stated, findings = read_statement(folder / RELEASE, key, goes_on=goes_on)
    yield from findings
    if stated is None:
        return
    release = stated.statement
    if release.phase != pb.PHASE_TRAIN:
        yield failed(RELEASE, "it is the statement of an evaluation, not of a released model")
    yield from check_recorded(RELEASE, stated, ledger)
    yield from check_last(RELEASE, release, ledger)
    digest, findings = attempted(MODEL, partial(blake3_of, folder / MODEL))
    yield from findings
    if digest is not None:
        yield check_model(MODEL, digest, release, ledger)
        if digest == release.release_digest:
            yield from _statistics(folder, release.job, ledger)
    yield from _evaluation(folder / EVALUATION, key, release, ledger)
    if any((folder / name).exists() for name in (BEST, BEST_MODEL)):
        yield from _best(folder, key, release, ledger)
    lines = lines_of(folder / HISTORY, _LINE_BYTES, MAX_LEDGER_BYTES)
    yield from check_history(HISTORY, lines, release.job, ledger)


def _statistics(folder: Path, job: str, ledger: LedgerCopy) -> Iterator[Finding]:
    """Whether the figures of a job of statistics are those of its release, which lies beside them."""
    statistics, findings = statistics_of(job, ledger)
    yield from findings
    if statistics is None:
        return
    text, findings = attempted(
        STATISTICS,
        partial(content_of, folder / STATISTICS, _FIGURES_BYTES),
        goes_on=ledger.goes_on,
    )
    yield from findings
    if text is None:
        return
    schema, payload = read_model(folder / MODEL)
    if schema != schema_of(statistics):
        yield failed(MODEL, f"it has other tensors than the columns of {job}")
        return
    yield check_figures(STATISTICS, text, job, statistics, payload)


def _evaluation(
    path: Path, key: Ed25519PublicKey, release: pb.ReleaseStatement, ledger: LedgerCopy
) -> Iterator[Finding]:
    if not path.exists():
        yield from check_no_evaluation(path.name, release.job, ledger)
        return
    evaluation, findings = read_statement(path, key)
    yield from findings
    if evaluation is not None:
        recorded = list(check_recorded(path.name, evaluation, ledger))
        yield from recorded
        if all(finding.grade is not Grade.BEHIND for finding in recorded):
            yield check_evaluation(path.name, evaluation.statement, release, ledger)
            yield from check_last(path.name, evaluation.statement, ledger)


def _best(
    folder: Path, key: Ed25519PublicKey, release: pb.ReleaseStatement, ledger: LedgerCopy
) -> Iterator[Finding]:
    """Whether the best model is a release of the job; that none is better is the coordinator's own word."""
    stated, findings = read_statement(folder / BEST, key, goes_on=ledger.goes_on)
    yield from findings
    if stated is None:
        return
    yield from check_recorded(BEST, stated, ledger)
    yield from check_best(BEST, stated.statement, release)
    digest, findings = attempted(BEST_MODEL, partial(blake3_of, folder / BEST_MODEL))
    yield from findings
    if digest is not None:
        yield check_model(BEST_MODEL, digest, stated.statement, ledger)


def _statement_file(path: Path, against: Evidence) -> Iterator[Finding]:
    stated, findings = read_statement(path, against.pinned)
    yield from findings
    if stated is not None and against.ledger is not None:
        ledger, findings = _other_copy(against.ledger, against)
        yield from findings
        yield from check_recorded(path.name, stated, ledger)


def _aggregator(file: Path, against: Evidence) -> Iterator[Finding]:
    goes_on = file.suffix == ".jsonl" and not _is_completed(file.parent)
    ledger, findings = read_copy(file, against.key, goes_on=goes_on)
    yield from findings
    if file.suffix == ".sqlite":
        _, finding = check_ledger(f"{file.name}, refusals", read_refusals(file))
        yield finding
    yield from _compared(ledger, against)[1]


def _compared(ledger: LedgerCopy, against: Evidence) -> tuple[LedgerCopy, list[Finding]]:
    """The longer of the two copies, if both are of one ledger, and whether they are."""
    if against.ledger is None:
        return ledger, []
    other, findings = _other_copy(against.ledger, against)
    same = check_same_ledger(ledger, other)
    is_longer = same.good and len(other.entries) > len(ledger.entries)
    return other if is_longer else ledger, [*findings, same]


def _other_copy(path: Path, against: Evidence) -> tuple[LedgerCopy, list[Finding]]:
    """A copy to compare with: it may have been made before what it is compared with."""
    return read_copy(find_ledger(path), against.key, goes_on=True)


def _owner(file: Path, against: Evidence) -> Iterator[Finding]:
    ledger, finding = check_ledger(file.name, read_ledger(file))
    yield finding
    record = OwnerRecord(ledger, against.pinned)
    yield from record.findings
    yield from record.private.findings()
    if against.ledger is not None:
        aggregators, findings = _other_copy(against.ledger, against)
        yield from findings
        yield from record.check_statements_in(aggregators)
        record.note_cohorts(aggregators)
    for path in against.statements:
        if not path.exists():
            raise UsageError(f"{path}: there is no such file")
        stated, findings = read_statement(path, against.pinned)
        if stated is None:
            yield from findings
        else:
            yield record.check_counted(path.name, stated.statement)


def _is_completed(folder: Path) -> bool:
    """Whether the run says that it is completed; one that says nothing is held to be."""
    try:
        return json.loads(content_of(folder / CHECKPOINT)).get("completed") is not False
    except (InvalidMessage, ValueError, AttributeError, RecursionError):
        return True
