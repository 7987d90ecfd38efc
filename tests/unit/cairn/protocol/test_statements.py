"""What the aggregator signs, and what a verifier refuses."""

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cairn.errors import InvalidMessage
from cairn.protocol.aggregation import Aggregation, aggregation_to_pb
from cairn.protocol.statements import (
    HEAD,
    MANIFEST,
    RECEIPT,
    STATEMENT,
    commitment_of,
    envelope,
    from_envelope,
    pre_authentication_encoding,
    sign,
    verified,
    verified_head,
    verified_receipt,
    verified_statement,
)
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb

KEY = Ed25519PrivateKey.generate()
BODY = pb.ReleaseStatement(
    manifest_digest=b"m" * 32,
    federation="clinics",
    job="tumours",
    round=3,
    phase=pb.PHASE_TRAIN,
    release_digest=b"r" * 32,
    base_digest=b"b" * 32,
    contributors=3,
    exclusions=[pb.Exclusion(owner="dora", reason=pb.REASON_LEASE_EXPIRED)],
    aggregation=aggregation_to_pb(Aggregation()),
    weighting=pb.WEIGHTING_EQUAL,
    encoding=pb.ENCODING_WHOLE,
    metrics={"loss": 0.25},
    ledger_head=b"l" * 32,
    ledger_number=7,
    floor=3,
    commitments=[b"1" * 32, b"2" * 32, b"3" * 32],
).SerializeToString()


def test_the_encoding_is_that_of_the_dsse_specification() -> None:
    # The example of the specification's protocol.md.
    assert (
        pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_what_was_signed_is_verified() -> None:
    assert verified(KEY.public_key(), STATEMENT, sign(KEY, STATEMENT, BODY)) == BODY


def test_another_aggregators_signature_is_refused() -> None:
    other = Ed25519PrivateKey.generate()
    with pytest.raises(InvalidMessage, match="not the pinned aggregator's"):
        verified(KEY.public_key(), STATEMENT, sign(other, STATEMENT, BODY))


def test_a_changed_byte_is_refused() -> None:
    signed = sign(KEY, STATEMENT, BODY)
    signed.body = BODY[:-1] + bytes([BODY[-1] ^ 1])
    with pytest.raises(InvalidMessage):
        verified(KEY.public_key(), STATEMENT, signed)


@pytest.mark.parametrize("kind", [MANIFEST, RECEIPT])
def test_a_signed_message_of_one_kind_does_not_pass_for_another(kind: str) -> None:
    signed = sign(KEY, kind, BODY)
    with pytest.raises(InvalidMessage, match="expected a signed"):
        verified(KEY.public_key(), STATEMENT, signed)
    signed.type = STATEMENT  # the name alone does not help: it is part of what was signed
    with pytest.raises(InvalidMessage, match="signature"):
        verified(KEY.public_key(), STATEMENT, signed)


def test_an_envelope_holds_the_signed_bytes_and_says_them_in_words() -> None:
    signed = sign(KEY, STATEMENT, BODY)
    values = envelope(signed)
    assert base64.b64decode(values["payload"]) == BODY
    assert values["statement"]["exclusions"] == {"dora": "LEASE_EXPIRED"}
    assert values["statement"]["release_digest"] == (b"r" * 32).hex()
    assert from_envelope(json.dumps(values)) == signed
    values["signatures"].append({"sig": "bW9yZQ=="})
    assert from_envelope(json.dumps(values)) == signed  # the first is the aggregator's


PRIVATE = Aggregation(
    rule=pb.RULE_PRIVATE_MEAN,
    rule_numbers={"norm": 1.0, "noise": 2.0, "epsilon": 8.0, "delta": 1e-5},
)


def private_statement(**privacy: float) -> pb.Signed:
    body = pb.ReleaseStatement.FromString(BODY)
    body.aggregation.CopyFrom(aggregation_to_pb(PRIVATE))
    body.metrics.clear()
    if privacy:
        body.privacy.CopyFrom(pb.Privacy(**privacy))
    return sign(KEY, STATEMENT, body.SerializeToString())


def test_a_private_statement_says_what_was_told_of_one_owner() -> None:
    signed = private_statement(epsilon=2.166, delta=1e-5)
    assert verified_statement(KEY.public_key(), signed).privacy.epsilon == 2.166
    assert envelope(signed)["statement"]["epsilon"] == 2.166
    assert "epsilon" not in envelope(sign(KEY, STATEMENT, BODY))["statement"]


@pytest.mark.parametrize(
    "privacy",
    [
        {},
        {"epsilon": 8.001, "delta": 1e-5},  # more than the job allows
        {"epsilon": 2.165, "delta": 1e-5},  # less than one release tells, which is 2.1657
        {"epsilon": 0.0, "delta": 1e-5},
        {"epsilon": float("nan"), "delta": 1e-5},
        {"epsilon": 3.0, "delta": 1e-6},
        {"epsilon": 3.0},
    ],
    ids=str,
)
def test_a_private_statement_that_says_too_much_or_too_little_is_refused(
    privacy: dict[str, float],
) -> None:
    with pytest.raises(InvalidMessage, match="epsilon"):
        verified_statement(KEY.public_key(), private_statement(**privacy))


def test_a_statement_without_noise_has_no_epsilon_and_one_with_noise_no_metrics() -> None:
    body = pb.ReleaseStatement.FromString(BODY)
    body.privacy.CopyFrom(pb.Privacy(epsilon=3.0, delta=1e-5))
    with pytest.raises(InvalidMessage, match="only there"):
        verified_statement(KEY.public_key(), sign(KEY, STATEMENT, body.SerializeToString()))
    body.aggregation.CopyFrom(aggregation_to_pb(PRIVATE))
    with pytest.raises(InvalidMessage, match="metrics, which have no noise"):
        verified_statement(KEY.public_key(), sign(KEY, STATEMENT, body.SerializeToString()))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"payloadType": 1}', "null"])
def test_a_file_that_is_no_envelope_is_refused(text: str) -> None:
    with pytest.raises(InvalidMessage):
        from_envelope(text)


def test_a_statement_with_an_unknown_reason_is_refused() -> None:
    body = pb.ReleaseStatement.FromString(BODY)
    body.exclusions[0].reason = 99  # type: ignore[assignment]  # what a newer aggregator might say
    with pytest.raises(InvalidMessage, match="reason"):
        verified_statement(KEY.public_key(), sign(KEY, STATEMENT, body.SerializeToString()))


@pytest.mark.parametrize(
    "change",
    [
        {"contributors": 2},
        {"contributors": 4},
        {"floor": 4},
        {"commitments": [b"1" * 32, b"2" * 32]},
        {"commitments": [b"1" * 32, b"2" * 32, b"3" * 31]},
        {"commitments": []},
        {"contributors": 1, "floor": 1, "commitments": [b"1" * 32]},
        {"contributors": 0, "floor": 0, "commitments": []},
        {"manifest_digest": b""},
        {"release_digest": b"r"},
        {"ledger_head": b""},
        {"phase": 0},
        {"aggregation": pb.Aggregation()},
        {"aggregation": pb.Aggregation(content=1, rule=99, optimizer=1)},  # type: ignore[arg-type]  # a newer one
        {
            "aggregation": pb.Aggregation(
                content=pb.CONTENT_WEIGHTS,
                rule=pb.RULE_TRIMMED_MEAN,
                rule_numbers={"trim": 0.4},  # of three, one is left
                optimizer=pb.OPTIMIZER_NONE,
            )
        },
        {"draw_seed": b"s" * 32},  # where nothing is drawn
        {
            "aggregation": pb.Aggregation(  # whose draw is not told
                content=pb.CONTENT_WEIGHTS,
                rule=pb.RULE_BUCKETED_MEDIAN,
                rule_numbers={"bucket": 3},
                optimizer=pb.OPTIMIZER_NONE,
            )
        },
        {"encoding": 0},
        {"encoding": 99},
    ],
    ids=str,
)
def test_a_statement_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    body = pb.ReleaseStatement.FromString(BODY)
    for field in change:
        body.ClearField(field)
    body.MergeFrom(pb.ReleaseStatement(**change))  # type: ignore[arg-type]  # the change is the test's
    with pytest.raises(InvalidMessage):
        verified_statement(KEY.public_key(), sign(KEY, STATEMENT, body.SerializeToString()))


def test_the_commitment_of_a_receipt_is_the_sha256_of_its_body() -> None:
    body = aggregator_pb2.Receipt(
        manifest_digest=b"m" * 32, owner="alice", examples=120, salt=b"s" * 32
    ).SerializeToString()
    signed = sign(KEY, RECEIPT, body)
    assert commitment_of(signed) == hashlib.sha256(body).digest()
    assert verified_receipt(KEY.public_key(), signed).owner == "alice"


def test_a_receipt_without_its_salt_is_refused() -> None:
    body = aggregator_pb2.Receipt(manifest_digest=b"m" * 32, owner="alice").SerializeToString()
    with pytest.raises(InvalidMessage, match="salt"):
        verified_receipt(KEY.public_key(), sign(KEY, RECEIPT, body))


def test_a_ledgers_head_is_verified_and_must_be_a_digest() -> None:
    head = pb.LedgerHead(federation="clinics", number=7, head=b"h" * 32)
    good = sign(KEY, HEAD, head.SerializeToString())
    assert verified_head(KEY.public_key(), good) == head
    head.head = b"h" * 31
    with pytest.raises(InvalidMessage, match="head"):
        verified_head(KEY.public_key(), sign(KEY, HEAD, head.SerializeToString()))
