"""Certificates of the federation's authority with names that `cairn sign` never gives."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtensionOID

from cairn.identity.authority import new_key
from cairn.v1 import aggregator_pb2
from tests.hostile.checks import refusals
from tests.hostile.owners import DENIED, an_aggregator
from tests.service.network import SECONDS, Credentials, Network, refused

ALICE = b"spiffe://ward/owner/alice"
URI, X400_ADDRESS, EDI_PARTY = 0x86, 0xA3, 0xA5  # the tags of a general name (RFC 5280, 4.2.1.6)
NAMES = {
    "two": [(URI, ALICE), (URI, b"spiffe://ward/owner/bob")],
    "one twice": [(URI, ALICE), (URI, ALICE)],
    "a zero byte behind": [(URI, ALICE + b"\0.example")],
    "a line's end behind": [(URI, ALICE + b"\n")],
    "no ASCII": [(URI, b"spiffe://ward/owner/al\xefce")],
    "another alphabet": [(URI, "spiffe://ward/owner/аlice".encode())],  # noqa: RUF001 - that is the attack
    "capitals": [(URI, ALICE.upper())],
    "an address of X.400 beside": [(X400_ADDRESS, b"\x04\x01x"), (URI, ALICE)],
    "a party of EDI": [(EDI_PARTY, b"\xa1\x03\x0c\x01x")],
    "none": [],
}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    yield from an_aggregator(tmp_path_factory)


def named(network: Network, names: list[tuple[int, bytes]]) -> Credentials:
    """A certificate with these general names, as their bytes are."""
    home = network.directory / "authority"
    issuer = x509.load_pem_x509_certificate((home / "authority.crt").read_bytes())
    signing_key = load_pem_private_key((home / "authority.key").read_bytes(), None)
    assert isinstance(signing_key, ec.EllipticCurvePrivateKey)
    key = new_key()
    public_key = load_pem_private_key(key, None).public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    body = b"".join(bytes([tag, len(value)]) + value for tag, value in names)
    extension = x509.UnrecognizedExtension(
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes([0x30, len(body)]) + body
    )
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(issuer.subject, x509.Name([]), public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(extension, critical=False)
        .sign(signing_key, hashes.SHA256())
    )
    return key, certificate.public_bytes(Encoding.PEM)


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_a_certificate_with_an_odd_name_is_nobodys(
    network: Network, names: list[tuple[int, bytes]]
) -> None:
    network.credentials["odd"] = named(network, names)
    network.hang_up("odd")
    request = aggregator_pb2.ListEntriesRequest(first=1, limit=1)
    with refused(DENIED, "the caller's certificate is of no federation"):
        network.record("odd").ListEntries(request, timeout=SECONDS)
    assert not network.node.events("handler failed")
    assert "unknown" in {entry.facts["caller"] for entry in refusals(network.state)}
