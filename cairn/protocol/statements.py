"""Signs and verifies what the aggregator states: manifests, receipts, release statements, ledger heads.

The signature covers the type and the exact bytes (DSSE's pre-authentication encoding,
https://github.com/secure-systems-lab/dsse), so a signed manifest cannot pass for a receipt, and
nothing is serialised again in order to be verified.
"""

import base64
import json
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cairn.errors import InvalidMessage
from cairn.protocol.aggregation import Aggregation, aggregation_from_pb
from cairn.protocol.limits import MIN_COHORT
from cairn.protocol.messages import check_digest, check_draw, check_enums, digest_of, parse
from cairn.protocol.privacy import AGREEMENT, PrivacyBudget
from cairn.protocol.words import reason_word, word_of
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb

MANIFEST = "cairn.v1.RoundManifest"
RECEIPT = "cairn.v1.Receipt"
STATEMENT = "cairn.v1.ReleaseStatement"
HEAD = "cairn.v1.LedgerHead"


def pre_authentication_encoding(kind: str, body: bytes) -> bytes:
    encoded = kind.encode()
    return b"DSSEv1 %d %b %d %b" % (len(encoded), encoded, len(body), body)


def sign(key: Ed25519PrivateKey, kind: str, body: bytes) -> pb.Signed:
    signature = key.sign(pre_authentication_encoding(kind, body))
    return pb.Signed(type=kind, body=body, signature=signature)


def verified(key: Ed25519PublicKey, kind: str, signed: pb.Signed) -> bytes:
    """The body of a signed message; raises InvalidMessage where the signature is not good for it."""
    if signed.type != kind:
        raise InvalidMessage(f"expected a signed {kind}, got {signed.type[:80]!r}")
    try:
        key.verify(signed.signature, pre_authentication_encoding(kind, signed.body))
    except InvalidSignature:
        raise InvalidMessage(
            f"the signature of the {kind} is not the pinned aggregator's: either the peer is not"
            " that aggregator, or aggregator_signing_key in this node's file is out of date"
        ) from None
    return signed.body


def verified_statement(key: Ed25519PublicKey, signed: pb.Signed) -> pb.ReleaseStatement:
    """Verify and check a release statement."""
    statement = parse(pb.ReleaseStatement, verified(key, STATEMENT, signed))
    check_enums(statement, "phase", "weighting", "encoding")
    aggregation = aggregation_from_pb(statement.aggregation)
    for exclusion in statement.exclusions:
        check_enums(exclusion, "reason")
    for field in ("manifest_digest", "release_digest", "base_digest", "ledger_head"):
        check_digest(getattr(statement, field), field)
    for commitment in statement.commitments:
        check_digest(commitment, "commitment")
    if not statement.contributors == len(statement.commitments) >= statement.floor >= MIN_COHORT:
        raise InvalidMessage(
            f"the statement counts {statement.contributors} owners, has {len(statement.commitments)}"
            f" commitments and a floor of {statement.floor}"
        )
    trains = statement.phase == pb.PHASE_TRAIN
    check_draw(statement.draw_seed, "draw_seed", draws=trains and aggregation.draws)
    averaged = aggregation.averages_over(statement.contributors, statement.floor)
    if trains and averaged < statement.floor:
        raise InvalidMessage(
            f"by {aggregation}, an element of a release of {statement.contributors} owners is an average over"
            f" {averaged}, and the floor is {statement.floor}"
        )
    _check_privacy(statement, PrivacyBudget.of(aggregation))
    return statement


def _check_privacy(statement: pb.ReleaseStatement, budget: PrivacyBudget | None) -> None:
    """Raise InvalidMessage where a statement says too little or too much of what a job with this budget has told."""
    if statement.HasField("privacy") != (budget is not None):
        raise InvalidMessage("a statement has an epsilon where the rule adds noise, and only there")
    if budget is None:
        return
    epsilon, delta = statement.privacy.epsilon, statement.privacy.delta
    least = budget.spent_by(1) * (1 - AGREEMENT)
    if delta != budget.delta or not least <= epsilon <= budget.epsilon:
        raise InvalidMessage(
            f"the statement has epsilon {epsilon:g} at delta {delta:g}; the job allows {budget.epsilon:g} at"
            f" {budget.delta:g}, and one release tells {budget.spent_by(1):.4g}"
        )
    if statement.metrics:
        raise InvalidMessage("the statement of a private job has metrics, which have no noise")


def verified_receipt(key: Ed25519PublicKey, signed: pb.Signed) -> aggregator_pb2.Receipt:
    """Verify and check a receipt."""
    receipt = parse(aggregator_pb2.Receipt, verified(key, RECEIPT, signed))
    check_digest(receipt.manifest_digest, "manifest_digest")
    check_digest(receipt.salt, "salt")
    return receipt


def commitment_of(receipt: pb.Signed) -> bytes:
    """What a release statement lists for the update that this receipt accepts."""
    return digest_of(receipt.body)


def verified_head(key: Ed25519PublicKey, signed: pb.Signed) -> pb.LedgerHead:
    """Verify and check a signed head of the aggregator's ledger."""
    head = parse(pb.LedgerHead, verified(key, HEAD, signed))
    check_digest(head.head, "head")
    return head


def envelope(signed: pb.Signed) -> dict[str, Any]:
    """A signed release statement as a DSSE JSON envelope, and beside it in words.

    `payload` and `sig` are what a verifier uses; `statement` repeats the payload for people.
    """
    return _enveloped(signed) | {
        "statement": _in_words(parse(pb.ReleaseStatement, signed.body)),
    }


def head_envelope(signed: pb.Signed) -> dict[str, Any]:
    """A signed LedgerHead as a DSSE JSON envelope, and beside it in words."""
    head = parse(pb.LedgerHead, signed.body)
    words = {"federation": head.federation, "number": head.number, "head": head.head.hex()}
    return _enveloped(signed) | {"ledger": words}


def _enveloped(signed: pb.Signed) -> dict[str, Any]:
    return {
        "payloadType": signed.type,
        "payload": base64.b64encode(signed.body).decode(),
        "signatures": [{"sig": base64.b64encode(signed.signature).decode()}],
    }


def from_envelope(text: str) -> pb.Signed:
    """Read back what `envelope` made; raises InvalidMessage where it is something else."""
    try:
        values = json.loads(text)
        return pb.Signed(
            type=values["payloadType"],
            body=base64.b64decode(values["payload"], validate=True),
            signature=base64.b64decode(values["signatures"][0]["sig"], validate=True),
        )
    except (ValueError, KeyError, IndexError, TypeError):
        raise InvalidMessage("the file is not a signed release statement") from None


def aggregation_in_words(aggregation: Aggregation) -> dict[str, Any]:
    """What became of the updates, as files and ledgers have it."""
    return {
        "content": word_of(pb.Content, aggregation.content),
        "rule": word_of(pb.Rule, aggregation.rule),
        "rule_numbers": dict(sorted(aggregation.rule_numbers.items())),
        "optimizer": word_of(pb.Optimizer, aggregation.optimizer),
        "optimizer_numbers": dict(sorted(aggregation.optimizer_numbers.items())),
    }


def privacy_in_words(statement: pb.ReleaseStatement) -> dict[str, float]:
    """The epsilon and the delta of a statement, as files and ledgers have them; empty where it has none."""
    if not statement.HasField("privacy"):
        return {}
    return {"epsilon": statement.privacy.epsilon, "delta": statement.privacy.delta}


def _in_words(statement: pb.ReleaseStatement) -> dict[str, Any]:
    return {
        "federation": statement.federation,
        "job": statement.job,
        "round": statement.round,
        "phase": word_of(pb.Phase, statement.phase),
        "contributors": statement.contributors,
        "floor": statement.floor,
        "exclusions": {e.owner: reason_word(e.reason) for e in statement.exclusions},
        **aggregation_in_words(aggregation_from_pb(statement.aggregation)),
        "weighting": word_of(pb.Weighting, statement.weighting),
        "encoding": word_of(pb.Encoding, statement.encoding),
        **({"draw_seed": statement.draw_seed.hex()} if statement.draw_seed else {}),
        "metrics": dict(sorted(statement.metrics.items())),
        **privacy_in_words(statement),
        "release_digest": statement.release_digest.hex(),
        "base_digest": statement.base_digest.hex(),
        "manifest_digest": statement.manifest_digest.hex(),
        "ledger_number": statement.ledger_number,
        "ledger_head": statement.ledger_head.hex(),
        "sealed_unix_ms": statement.sealed_unix_ms,
        "software": statement.software,
    }
