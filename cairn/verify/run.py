"""Checks what a coordinator's run has left: its model, evaluation and history. Pure."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cairn.diagnostics.findings import Finding, Grade, failed, ok
from cairn.errors import InvalidMessage
from cairn.ledger.chain import MAX_ENTRY_VALUES
from cairn.protocol.words import word_of
from cairn.runtime.foreign_files import Incomplete, json_values
from cairn.v1 import round_pb2 as pb
from cairn.verify.ledger import LedgerCopy, attempted, differing
from cairn.verify.statement import title


def check_model(
    name: str, digest: bytes, statement: pb.ReleaseStatement, ledger: LedgerCopy
) -> Finding:
    """Whether the file with this BLAKE3 is the released model."""
    if digest == statement.release_digest:
        return ok(name, f"it is the release of {title(statement)}")
    later = {
        "job": statement.job,
        "phase": word_of(pb.Phase, pb.PHASE_TRAIN),
        "release_digest": digest.hex(),
    }
    if entry := ledger.release_with(later, after=statement.ledger_number + 1):
        return ledger.lacking(
            name, f"it is the release of entry {entry.number} of {ledger.name}, a later one"
        )
    hint = "; if that is still so once the run has gone on, the file was changed"
    return failed(
        name,
        f"its BLAKE3 is {digest.hex()}, that of the release of {title(statement)} is"
        f" {statement.release_digest.hex()}{hint if ledger.goes_on else ''}",
    )


def check_best(
    name: str, best: pb.ReleaseStatement, release: pb.ReleaseStatement
) -> Iterator[Finding]:
    """Whether the best release is one of the job's models, and no later one than the last."""
    if best.phase != pb.PHASE_TRAIN or best.job != release.job:
        yield failed(name, f"it is not the statement of a released model of {release.job}")
    elif best.ledger_number > release.ledger_number:
        yield failed(name, f"{title(best)} is later than the last release, {title(release)}")


def check_last(name: str, statement: pb.ReleaseStatement, ledger: LedgerCopy) -> Iterator[Finding]:
    """Whether this is the last release of its job and phase."""
    later = {"job": statement.job, "phase": word_of(pb.Phase, statement.phase)}
    if entry := ledger.release_with(later, after=statement.ledger_number + 1):
        yield ledger.lacking(
            name,
            f"entry {entry.number} of {ledger.name} is a later release of {statement.job}: run the"
            " job again to collect it",
        )


def check_no_evaluation(name: str, job: str, ledger: LedgerCopy) -> Iterator[Finding]:
    """Whether an evaluation may be missing: there was none."""
    evaluated = {"job": job, "phase": word_of(pb.Phase, pb.PHASE_EVALUATE)}
    if entry := ledger.release_with(evaluated):
        yield ledger.lacking(
            name, f"it is missing: entry {entry.number} of {ledger.name} is an evaluation"
        )


def check_evaluation(
    name: str, evaluation: pb.ReleaseStatement, release: pb.ReleaseStatement, ledger: LedgerCopy
) -> Finding:
    """Whether what was evaluated is a release of the job."""
    if evaluation.phase != pb.PHASE_EVALUATE or evaluation.job != release.job:
        return failed(name, f"it is not the statement of an evaluation of {release.job}")
    digest = evaluation.base_digest.hex()
    released = {
        "job": release.job,
        "phase": word_of(pb.Phase, pb.PHASE_TRAIN),
        "release_digest": digest,
    }
    if entry := ledger.release_with(released):
        return ok(name, f"it evaluates the release of entry {entry.number} of {ledger.name}")
    return failed(
        name, f"the evaluated model {digest} is no release of {release.job} in {ledger.name}"
    )


def check_history(
    name: str, lines: Iterable[bytes], job: str, ledger: LedgerCopy
) -> Iterator[Finding]:
    """Whether the history has the releases of the job, each once, in order and with their counts.

    A run that took up a job which began in another folder has none of the earlier ones, and the finding says so.
    A job that goes on may have been stopped before it wrote the last line. The metrics and the seconds of a
    line are the coordinator's own words: nothing here checks them.
    """
    expected = _releases_of(job, ledger)
    seen = before = 0

    def compare() -> None:
        nonlocal seen, before, expected
        for line in lines:
            number = seen + 1
            values = _parsed(line, number)
            if number == 1:
                before = _place_of(values, expected)
                expected = expected[before:]
            if number > len(expected):
                raise Incomplete(
                    f"line {number} is too many: {ledger.name} has {before + len(expected)} releases"
                )
            difference = differing(values, expected[seen])
            if difference:
                raise InvalidMessage(f"line {number} has {difference}, which {ledger.name} has")
            seen = number

    _, complaints = attempted(name, compare, goes_on=ledger.goes_on)
    yield from complaints
    if any(complaint.grade is Grade.FAILED for complaint in complaints):
        return
    missing = expected[seen:]
    if len(missing) > (1 if ledger.goes_on else 0):
        yield ledger.lacking(
            name, f"round {missing[0]['round']} is missing, which {ledger.name} has"
        )
    elif not complaints:
        others = f"; the {before} before them are not in it" if before else ""
        yield ok(name, f"its {seen} rounds are the releases of {job} in {ledger.name}{others}")


def _releases_of(job: str, ledger: LedgerCopy) -> list[dict[str, Any]]:
    """What a history should say of each, in order."""
    return [
        {key: facts.get(key) for key in ("round", "contributors", "epsilon")}
        for facts in (entry.facts for entry in ledger.entries if entry.kind == "release")
        if differing(facts, {"job": job, "phase": word_of(pb.Phase, pb.PHASE_TRAIN)}) is None
    ]


def _place_of(values: dict[str, Any], releases: Sequence[dict[str, Any]]) -> int:
    """The release with which a history begins: a run that took up a job of another folder has no earlier ones."""
    rounds = [release["round"] for release in releases]
    first = values.get("round")
    return rounds.index(first) if first in rounds else 0


def _parsed(line: bytes, number: int) -> dict[str, Any]:
    """A line as a coordinator writes it."""
    try:
        values = json.loads(line) if json_values(line) <= MAX_ENTRY_VALUES else None
        if isinstance(values, dict) and json.dumps(values).encode() + b"\n" == line:
            return values
    except (ValueError, RecursionError):
        pass
    complaint = InvalidMessage if line.endswith(b"\n") else Incomplete
    raise complaint(f"line {number}: it is cut off or was changed")
