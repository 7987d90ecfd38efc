"""Everything the aggregator signs verifies under the pinned key, and under no other."""

import base64
import json
from hashlib import sha256
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cairn.errors import InvalidMessage
from cairn.identity.signing_keys import parse_signing_key_text
from cairn.protocol.statements import (
    MANIFEST,
    RECEIPT,
    STATEMENT,
    envelope,
    from_envelope,
    verified,
)
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.service.network import SECONDS, Network

KINDS = {"manifest": MANIFEST, "receipt": RECEIPT, "statement": STATEMENT}


@pytest.fixture(scope="module")
def signed(network: Network) -> dict[str, pb.Signed]:
    """One of each, from one round."""
    opened = network.job().open()
    receipts = []
    for owner in ("alice", "bob"):
        opened.join(owner)
        receipts.append(opened.push(owner, bytes(16)))
    opened.ends()
    statement, _ = opened.collect()
    return {"manifest": opened.signed, "receipt": receipts[0], "statement": statement}


def pinned_key(network: Network) -> Ed25519PublicKey:
    """The key as an owner's own file has it."""
    lines = (network.directory / "alice.toml").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("aggregator_signing_key")]
    return parse_signing_key_text(line.split('"')[1])


@pytest.mark.parametrize("what", KINDS)
def test_it_verifies_with_the_pinned_key_over_exactly_the_encoded_bytes(
    network: Network, signed: dict[str, pb.Signed], what: str
) -> None:
    message, kind = signed[what], KINDS[what].encode()
    encoded = b" ".join(
        [b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(message.body), message.body]
    )
    pinned_key(network).verify(message.signature, encoded)  # the library's own check
    assert verified(pinned_key(network), KINDS[what], message) == message.body


@pytest.mark.parametrize("what", KINDS)
def test_it_does_not_verify_with_another_key(signed: dict[str, pb.Signed], what: str) -> None:
    other = Ed25519PrivateKey.generate().public_key()
    with pytest.raises(InvalidMessage, match="not the pinned aggregator's"):
        verified(other, KINDS[what], signed[what])


@pytest.mark.parametrize("what", KINDS)
def test_it_does_not_verify_with_one_bit_changed_or_as_another_kind(
    network: Network, signed: dict[str, pb.Signed], what: str
) -> None:
    key, good = pinned_key(network), signed[what]
    changes: list[dict[str, Any]] = [
        {"body": good.body[:-1] + bytes([good.body[-1] ^ 1])},
        {"body": good.body + b"\0"},
        {"signature": good.signature[:-1] + bytes([good.signature[-1] ^ 1])},
        {"signature": b""},
    ]
    for change in changes:
        values = {"type": good.type, "body": good.body, "signature": good.signature}
        with pytest.raises(InvalidMessage):
            verified(key, KINDS[what], pb.Signed(**values | change))
    for other in set(KINDS.values()) - {KINDS[what]}:
        with pytest.raises(InvalidMessage):
            verified(key, other, good)
        renamed = pb.Signed(type=other, body=good.body, signature=good.signature)
        with pytest.raises(InvalidMessage):
            verified(key, other, renamed)


def test_manifest_receipt_and_statement_name_one_another(signed: dict[str, pb.Signed]) -> None:
    manifest = pb.RoundManifest.FromString(signed["manifest"].body)
    receipt = aggregator_pb2.Receipt.FromString(signed["receipt"].body)
    statement = pb.ReleaseStatement.FromString(signed["statement"].body)
    assert receipt.manifest_digest == statement.manifest_digest
    assert (receipt.owner, receipt.examples) == ("alice", 1)
    assert statement.base_digest == manifest.base_digest
    assert statement.contributors == len(manifest.cohort) == 2
    assert manifest.floor == 2
    assert statement.floor == 2
    assert len(manifest.nonce) == len(receipt.salt) == 32
    assert sha256(signed["receipt"].body).digest() in statement.commitments


def test_owners_and_the_coordinator_are_given_the_same_statement(
    network: Network, signed: dict[str, pb.Signed]
) -> None:
    statement = pb.ReleaseStatement.FromString(signed["statement"].body)
    request = aggregator_pb2.GetStatementRequest(manifest_digest=statement.manifest_digest)
    for who in ("alice", "bob", "coordinator"):
        answer = network.record(who).GetStatement(request, timeout=SECONDS)
        assert answer.statement == signed["statement"]


def test_the_file_that_a_run_leaves_verifies_with_nothing_of_ours(
    network: Network, signed: dict[str, pb.Signed]
) -> None:
    text = json.dumps(envelope(signed["statement"]))
    file = json.loads(text)
    kind, body = file["payloadType"].encode(), base64.b64decode(file["payload"])
    signature = base64.b64decode(file["signatures"][0]["sig"])
    encoded = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)
    pinned_key(network).verify(signature, encoded)
    with pytest.raises(InvalidSignature):
        pinned_key(network).verify(signature, encoded + b" ")
    assert from_envelope(text) == signed["statement"]


def test_two_rounds_never_have_the_same_manifest(network: Network) -> None:
    first, second = network.job().open(), network.job().open()
    assert first.digest != second.digest
    assert first.manifest.nonce != second.manifest.nonce
