"""Checks what a coordinator's run has left: its model, evaluation and history. Pure."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from cairn.errors import InvalidMessage
from cairn.v1 import round_pb2 as pb
from cairn.verify import Copy, Finding, attempted, differing, failed
from cairn.verify_recorded import phase_word, title


def check_model(name: str, digest: bytes, statement: pb.ReleaseStatement) -> Finding:
    """Whether the file with this BLAKE3 is the released model."""
    if digest != statement.release_digest:
        return failed(
            name,
            f"its BLAKE3 is {digest.hex()}, that of the release of {title(statement)} is"
            f" {statement.release_digest.hex()}",
        )
    return Finding(name, f"it is the release of {title(statement)}")


def check_last(name: str, statement: pb.ReleaseStatement, ledger: Copy) -> Iterator[Finding]:
    """Whether this is the last release of its job and phase."""
    for entry in ledger.entries[statement.ledger_number + 1 :]:
        later = {"job": statement.job, "phase": phase_word(statement)}
        if entry.kind == "release" and differing(entry.facts, later) is None:
            yield failed(
                name,
                f"entry {entry.number} of {ledger.name} is a later release of {statement.job}: run the"
                " job again to collect it",
            )
            return


def check_no_evaluation(name: str, job: str, ledger: Copy) -> Iterator[Finding]:
    """Whether an evaluation may be missing: there was none."""
    for entry in ledger.entries:
        evaluated = {"job": job, "phase": "evaluate"}
        if entry.kind == "release" and differing(entry.facts, evaluated) is None:
            yield failed(
                name, f"it is missing: entry {entry.number} of {ledger.name} is an evaluation"
            )
            return


def check_evaluation(
    name: str, evaluation: pb.ReleaseStatement, release: pb.ReleaseStatement, ledger: Copy
) -> Finding:
    """Whether what was evaluated is a release of the job."""
    if evaluation.phase != pb.PHASE_EVALUATE or evaluation.job != release.job:
        return failed(name, f"it is not the statement of an evaluation of {release.job}")
    digest = evaluation.base_digest.hex()
    released = {"job": release.job, "phase": "train", "release_digest": digest}
    for entry in ledger.entries:
        if entry.kind == "release" and differing(entry.facts, released) is None:
            return Finding(
                name, f"it evaluates the release of entry {entry.number} of {ledger.name}"
            )
    return failed(
        name, f"the evaluated model {digest} is no release of {release.job} in {ledger.name}"
    )


def check_history(
    name: str, lines: Sequence[bytes], job: str, ledger: Copy, *, completed: bool
) -> Iterator[Finding]:
    """Whether the history has the releases of the job, each once, in order and with their counts.

    A job that is not completed may have been stopped before it wrote the last line. The metrics and the
    seconds of a line are the coordinator's own words: nothing here checks them.
    """
    expected = [
        {"round": facts.get("round"), "contributors": facts.get("contributors")}
        for facts in (entry.facts for entry in ledger.entries if entry.kind == "release")
        if differing(facts, {"job": job, "phase": "train"}) is None
    ]
    for number, line in enumerate(lines, 1):
        values, complaints = attempted(f"{name}, line {number}", partial(_parsed, line))
        yield from complaints
        if values is None:
            return
        if number > len(expected):
            yield failed(
                name, f"line {number} is too many: {ledger.name} has {len(expected)} releases"
            )
            return
        difference = differing(values, expected[number - 1])
        if difference:
            yield failed(name, f"line {number} has {difference}, which {ledger.name} has")
            return
    missing = expected[len(lines) :]
    if len(missing) > (0 if completed else 1):
        yield failed(name, f"round {missing[0]['round']} is missing, which {ledger.name} has")
        return
    yield Finding(name, f"its {len(lines)} rounds are the releases of {job} in {ledger.name}")


def _parsed(line: bytes) -> dict[str, Any]:
    """A line as a coordinator writes it."""
    try:
        values = json.loads(line)
        if isinstance(values, dict) and json.dumps(values).encode() + b"\n" == line:
            return values
    except (ValueError, RecursionError):
        pass
    raise InvalidMessage("it is cut off or was changed")
