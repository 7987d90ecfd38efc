"""Reads the files of which `cairn verify` checks each by itself: a ledger, a statement, a model."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cairn.diagnostics.findings import Finding, Grade, ok
from cairn.errors import InvalidMessage, UsageError
from cairn.ledger.files import HEAD_FILE, read_ledger
from cairn.model.schema import MAX_MODEL_BYTES
from cairn.protocol.aggregation import aggregation_from_pb
from cairn.protocol.statements import envelope, from_envelope, head_envelope
from cairn.runtime.foreign_files import content_of, pieces_of
from cairn.storage.directory import OWNER_DATABASE
from cairn.v1 import round_pb2 as pb
from cairn.verify.ledger import LedgerCopy, attempted, check_groups, check_head, check_ledger
from cairn.verify.privacy import check_privacy
from cairn.verify.statement import VerifiedStatement, title


def no_key() -> UsageError:
    return UsageError(
        "signatures are checked under the aggregator's key: name it with --key ed25519:..., or name the"
        " file of a node that pins it with --config"
    )


def read_copy(
    file: Path,
    key: Ed25519PublicKey | None,
    *,
    head_expected: bool = False,
    goes_on: bool = False,
) -> tuple[LedgerCopy, list[Finding]]:
    """An aggregator's ledger, whether it keeps to the groups and the budgets of its jobs, and its signed head.

    Where it `goes_on`, it may be shorter than what is checked against it, and its last line may be torn.
    """
    if file.name == OWNER_DATABASE:
        raise UsageError(
            f"{file} is an owner's ledger; expected an aggregator's, or a run's folder"
        )
    ledger, finding = check_ledger(file.name, read_ledger(file), goes_on=goes_on)
    head_path = file.with_name(HEAD_FILE)
    signs = file.suffix == ".jsonl" and (head_expected or head_path.exists())
    kept = [*check_groups(ledger), *check_privacy(ledger)]
    if not signs or finding.grade is Grade.FAILED:
        return ledger, [finding, *kept]
    if key is None:
        raise no_key()
    signed, findings = attempted(
        HEAD_FILE, partial(_envelope, head_path, head_envelope), goes_on=goes_on
    )
    if signed is not None:
        findings += check_head(HEAD_FILE, key, signed, ledger)
    return ledger, [finding, *findings, *kept]


def read_statement(
    path: Path, key: Ed25519PublicKey, *, goes_on: bool = False
) -> tuple[VerifiedStatement | None, list[Finding]]:
    stated, findings = attempted(
        path.name, lambda: VerifiedStatement.of(key, _envelope(path, envelope)), goes_on=goes_on
    )
    if stated is not None:
        signed = (
            f"{title(stated.statement)} is signed by the aggregator{_made_of(stated.statement)}"
        )
        findings.append(ok(path.name, signed))
    return stated, findings


def _made_of(statement: pb.ReleaseStatement) -> str:
    """What became a release of a training, and by which rule; an evaluation releases no model."""
    if statement.phase == pb.PHASE_EVALUATE:
        return ""
    aggregation = aggregation_from_pb(statement.aggregation)
    return f": {statement.contributors} owners, by {aggregation}"


def _envelope(path: Path, written: Callable[[pb.Signed], dict[str, Any]]) -> pb.Signed:
    """Read an envelope. Raises InvalidMessage where the words beside the payload are others.

    The order of what has names, such as metrics, is of no account: protobuf's differs between processes.
    """
    try:
        text = content_of(path).decode()
        signed = from_envelope(text)
        values = json.loads(text)
        # As text, 1 is neither true nor 1.0; and a name that stands twice, or a changed space, does not hide.
        is_ours = json.dumps(values, indent=2) + "\n" == text
        if is_ours and _sorted(values) == _sorted(written(signed)):
            return signed
    except (ValueError, RecursionError):  # not UTF-8, or an enum value that has no word
        pass
    raise InvalidMessage("it is cut off, or what stands beside the payload is not what was signed")


def _sorted(values: object) -> str:
    return json.dumps(values, sort_keys=True)


def blake3_of(path: Path) -> bytes:
    hasher = blake3()
    for piece in pieces_of(path, MAX_MODEL_BYTES):
        hasher.update(piece)
    return hasher.digest()
