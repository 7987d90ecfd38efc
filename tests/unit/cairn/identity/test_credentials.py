"""What a node reads as it starts, and what it reads in a peer's certificate."""

import base64
import hashlib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from cairn.errors import CallerNotAllowed, InvalidMessage, UsageError
from cairn.identity.authority import (
    Authority,
    Subject,
    issue,
    new_authority,
    new_key,
    new_request,
    new_signing_key,
)
from cairn.identity.certified import certified
from cairn.identity.credentials import identity_faults, load_identity
from cairn.identity.describe import describe
from cairn.identity.names import NodeName, Role
from cairn.identity.pem import write_new
from cairn.identity.signing_keys import (
    load_signing_key,
    parse_signing_key_text,
    public_signing_key_text,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ALICE = NodeName("hospitals", Role.OWNER, "alice")
AGGREGATOR = NodeName("hospitals", Role.AGGREGATOR, "aggregator")
COORDINATOR = NodeName("hospitals", Role.COORDINATOR, "coordinator")


@dataclass(frozen=True)
class Files:
    certificate: Path
    key: Path
    authority: Path


@pytest.fixture(scope="module")
def authority() -> Authority:
    return new_authority("hospitals", NOW)


def certificate_of(authority: Authority, node: NodeName, key: bytes, days: int = 365) -> bytes:
    subject = Subject(node)
    return issue(authority, new_request(subject, key), subject, NOW, days)


def write(directory: Path, certificate: bytes, key: bytes, authority: bytes) -> Files:
    files = Files(directory / "node.crt", directory / "node.key", directory / "authority.crt")
    write_new(files.certificate, certificate, 0o644)
    write_new(files.key, key, 0o600)
    write_new(files.authority, authority, 0o644)
    return files


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> Files:
    """The files of the owner alice, all in order."""
    key = new_key()
    certificate = certificate_of(authority, ALICE, key)
    return write(tmp_path, certificate, key, authority.certificate)


def hand_made(
    authority: Authority, names: list[x509.GeneralName], key: bytes | None = None
) -> bytes:
    """A certificate as another tool of the authority could issue it: without an extended key usage."""
    signer = load_pem_private_key(authority.key, None)
    private = load_pem_private_key(key or new_key(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    builder = x509.CertificateBuilder(
        issuer_name=x509.load_pem_x509_certificate(authority.certificate).subject,
        subject_name=x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, ALICE.uri)]),
        public_key=private.public_key(),
        serial_number=1,
        not_valid_before=NOW,
        not_valid_after=NOW + timedelta(days=1),
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


@pytest.mark.parametrize("role", list(Role))
def test_a_name_is_read_back_from_its_uri(role: Role) -> None:
    node = NodeName("hospitals", role, "st-mary-2")
    assert node.uri == f"spiffe://hospitals/{role.value}/st-mary-2"
    assert NodeName.parse(node.uri) == node


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alice",
        "spiffe://hospitals/owner",
        "spiffe://hospitals/owner/",
        "spiffe://hospitals/owner/alice/",
        "spiffe://hospitals/owner/alice/more",
        "spiffe://hospitals/owner/alice\n",
        "spiffe://hospitals/owner/Alice",
        "spiffe://hospitals/owner/-alice",
        "spiffe://hospitals/owner/al%69ce",
        "spiffe://hospitals/owner/alice?x=1",
        "spiffe://hospitals/auditor/alice",
        "spiffe://hospitals/OWNER/alice",
        "spiffe:///owner/alice",
        "SPIFFE://hospitals/owner/alice",
        "https://hospitals/owner/alice",
        f"spiffe://hospitals/owner/{'a' * 64}",
    ],
)
def test_any_other_text_is_no_name(text: str) -> None:
    with pytest.raises(InvalidMessage):
        NodeName.parse(text)


@pytest.mark.parametrize("name", ["", "Bob", "b_b", "b.b", "-b", "b" * 64, "b\n"])
def test_a_name_outside_the_alphabet_cannot_be_made(name: str) -> None:
    with pytest.raises(InvalidMessage):
        NodeName("hospitals", Role.OWNER, name)
    with pytest.raises(InvalidMessage):
        NodeName(name, Role.OWNER, "bob")


def test_an_identity_that_is_in_order_is_loaded(files: Files) -> None:
    identity = load_identity(files, ALICE, NOW)
    assert identity.node == ALICE
    assert identity.certificate == files.certificate.read_bytes()
    assert identity.key == files.key.read_bytes()
    assert identity.authority == files.authority.read_bytes()
    assert identity.not_after == NOW + timedelta(days=365)
    der = ssl.PEM_cert_to_DER_cert(files.certificate.read_text())
    assert identity.fingerprint == f"sha256:{hashlib.sha256(der).hexdigest()}"


def test_a_private_key_is_not_shown_where_an_identity_is_printed(files: Files) -> None:
    assert "PRIVATE" not in repr(load_identity(files, ALICE, NOW))


@pytest.mark.parametrize("which", ["certificate", "key", "authority"])
def test_a_missing_file_is_named(files: Files, which: str) -> None:
    path: Path = getattr(files, which)
    path.unlink()
    with pytest.raises(UsageError, match=rf"{path} cannot be read \(it is missing"):
        load_identity(files, ALICE, NOW)


@pytest.mark.parametrize("which", ["certificate", "key", "authority"])
def test_a_file_of_another_content_is_named(files: Files, which: str) -> None:
    path: Path = getattr(files, which)
    path.write_text("hello")
    with pytest.raises(UsageError, match=rf"{path} holds no .* in PEM"):
        load_identity(files, ALICE, NOW)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_that_others_can_use_is_refused(files: Files, mode: int) -> None:
    files.key.chmod(mode)
    with pytest.raises(UsageError, match=f"chmod 600 {files.key}"):
        load_identity(files, ALICE, NOW)


def test_all_that_is_wrong_with_an_identity_is_said_and_not_only_the_first(files: Files) -> None:
    files.key.chmod(0o644)
    files.authority.write_bytes(new_authority("hospitals", NOW).certificate)
    late = NOW + timedelta(days=366)
    faults = [str(fault) for fault in identity_faults(files, COORDINATOR, late)]
    assert len(faults) == 5
    assert f"chmod 600 {files.key}" in faults[0]
    assert f"is the certificate of {ALICE}, but this node is {COORDINATOR}" in faults[1]
    assert f"was not issued by the authority {files.authority}" in faults[2]
    assert f"{files.certificate} expired on" in faults[3]
    assert "its extended key usage lacks serverAuth" in faults[4]


def test_an_identity_that_is_in_order_has_no_fault(files: Files) -> None:
    assert identity_faults(files, ALICE, NOW) == []


def test_a_key_with_a_password_is_refused(files: Files) -> None:
    key = load_pem_private_key(files.key.read_bytes(), None)
    locked = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    files.key.write_bytes(locked)
    with pytest.raises(UsageError, match="no unencrypted private key"):
        load_identity(files, ALICE, NOW)


def test_the_key_of_another_certificate_is_refused(files: Files) -> None:
    files.key.write_bytes(new_key())
    with pytest.raises(UsageError, match=rf"{files.key} does not belong to .*{files.certificate}"):
        load_identity(files, ALICE, NOW)


def test_a_certificate_of_another_authority_is_refused(files: Files) -> None:
    files.authority.write_bytes(new_authority("hospitals", NOW).certificate)
    with pytest.raises(UsageError, match=f"was not issued by the authority {files.authority}"):
        load_identity(files, ALICE, NOW)


def test_an_expired_certificate_is_refused_with_the_way_to_renew_it(files: Files) -> None:
    with pytest.raises(UsageError, match=r"expired on 2027-03-01 12:00 UTC.*cairn request.*sign"):
        load_identity(files, ALICE, NOW + timedelta(days=365, seconds=1))


def test_an_expired_authority_is_refused(tmp_path: Path) -> None:
    short, key = new_authority("hospitals", NOW, days=0), new_key()
    files = write(tmp_path, hand_made(short, [uri(ALICE.uri)], key), key, short.certificate)
    with pytest.raises(UsageError, match=f"{files.authority} expired on .*; ask whoever runs"):
        load_identity(files, ALICE, NOW + timedelta(hours=1))


def test_a_certificate_of_tomorrow_is_refused(files: Files) -> None:
    with pytest.raises(UsageError, match=r"valid only from 2026-03-01 11:55 UTC.*clock"):
        load_identity(files, ALICE, NOW - timedelta(minutes=6))


def test_a_clock_that_is_four_minutes_late_does_no_harm(files: Files) -> None:
    assert load_identity(files, ALICE, NOW - timedelta(minutes=4)).node == ALICE


@pytest.mark.parametrize(
    "other",
    [AGGREGATOR, NodeName("hospitals", Role.OWNER, "bob"), NodeName("banks", Role.OWNER, "alice")],
    ids=str,
)
def test_the_certificate_of_another_node_is_refused_with_both_names(
    files: Files, other: NodeName
) -> None:
    expected = f"is the certificate of {ALICE}, but this node is {other}"
    with pytest.raises(UsageError, match=expected):
        load_identity(files, other, NOW)


def test_a_certificate_without_a_name_is_refused(files: Files, authority: Authority) -> None:
    files.certificate.write_bytes(hand_made(authority, []))
    with pytest.raises(UsageError, match="is not the certificate of a node: it names 0 nodes"):
        load_identity(files, ALICE, NOW)


def test_a_certificate_without_a_purpose_is_refused(files: Files, authority: Authority) -> None:
    key = files.key.read_bytes()
    files.certificate.write_bytes(hand_made(authority, [uri(ALICE.uri)], key))
    with pytest.raises(UsageError, match="extended key usage lacks clientAuth"):
        load_identity(files, ALICE, NOW)


def test_the_signing_key_is_loaded_and_its_public_half_written_as_text(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    write_new(path, new_signing_key(), 0o600)
    key = load_signing_key(path)
    text = public_signing_key_text(key)
    kind, _, encoded = text.partition(":")
    assert kind == "ed25519"
    assert base64.b64decode(encoded) == key.public_key().public_bytes_raw()
    parse_signing_key_text(text).verify(key.sign(b"manifest"), b"manifest")


def test_the_text_of_a_signing_key_is_that_of_rfc_8032() -> None:
    # RFC 8032, section 7.1, test 1.
    private = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private))
    encoded = base64.b64encode(bytes.fromhex(public)).decode()
    assert public_signing_key_text(key) == f"ed25519:{encoded}"


def test_a_signing_key_that_others_can_use_is_refused(tmp_path: Path) -> None:
    write_new(tmp_path / "signing.key", new_signing_key(), 0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        load_signing_key(tmp_path / "signing.key")


def test_a_tls_key_is_no_signing_key(tmp_path: Path) -> None:
    write_new(tmp_path / "signing.key", new_key(), 0o600)
    with pytest.raises(UsageError, match="not an Ed25519 key"):
        load_signing_key(tmp_path / "signing.key")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ed25519:",
        "A" * 43 + "=",
        "ed25519:" + "A" * 43,
        "ed25519:" + "A" * 44,
        "ed25519:" + "A" * 42 + "B=",
        "ed25519: " + "A" * 43 + "=",
        "ed25519:" + "A" * 43 + "=\n",
        "ed25519:" + "é" * 44,
        "rsa:" + "A" * 43 + "=",
    ],
)
def test_any_other_text_is_no_signing_key(text: str) -> None:
    with pytest.raises(InvalidMessage, match="is not a signing key"):
        parse_signing_key_text(text)


@pytest.mark.parametrize("node", [ALICE, AGGREGATOR, COORDINATOR], ids=str)
def test_a_caller_is_whom_its_certificate_names(authority: Authority, node: NodeName) -> None:
    assert certified(certificate_of(authority, node, new_key())).node == node


def test_a_caller_is_known_until_its_certificate_ends(authority: Authority) -> None:
    caller = certified(certificate_of(authority, ALICE, new_key(), days=1))
    end = int((NOW + timedelta(days=1)).timestamp() * 1000)
    caller.check_end(end)
    with pytest.raises(CallerNotAllowed, match=r"owner/alice.*expired on 2026-03-02 12:00.*renew"):
        caller.check_end(end + 1)


@pytest.mark.parametrize(
    "names",
    [
        [],
        [x509.DNSName("alice")],
        [x509.DNSName("spiffe://hospitals/owner/alice")],
        [x509.RFC822Name("alice@example.org")],
        [uri("spiffe://hospitals/owner/alice"), uri("spiffe://hospitals/owner/bob")],
        [uri("spiffe://hospitals/owner/alice"), uri("spiffe://hospitals/owner/alice")],
        [uri("spiffe://hospitals/owner/alice"), uri("https://example.org")],
        [uri("spiffe://hospitals")],
        [uri("spiffe://hospitals/auditor/alice")],
    ],
    ids=str,
)
def test_a_caller_without_exactly_one_name_is_refused(
    authority: Authority, names: list[x509.GeneralName]
) -> None:
    with pytest.raises(CallerNotAllowed):
        certified(hand_made(authority, names))


@pytest.mark.parametrize("pem", [b"", b"hello"])
def test_a_caller_without_a_certificate_is_refused(pem: bytes) -> None:
    with pytest.raises(CallerNotAllowed):
        certified(pem)


def test_the_authority_itself_is_no_caller(authority: Authority) -> None:
    with pytest.raises(CallerNotAllowed):
        certified(authority.certificate)


def test_the_description_of_a_certificate_says_who_until_when_and_what_for(
    authority: Authority,
) -> None:
    text = describe(certificate_of(authority, ALICE, new_key()), NOW + timedelta(days=5))
    assert text.startswith("certificate of owner/alice in federation hospitals\n")
    assert "alice, localhost, 127.0.0.1, ::1" in text
    assert "push updates" in text
    assert "2027-03-01 12:00 UTC (360 days left)" in text


def test_the_description_of_an_expired_certificate_says_so(authority: Authority) -> None:
    text = describe(certificate_of(authority, ALICE, new_key()), NOW + timedelta(days=366))
    assert "(EXPIRED)" in text


def test_the_description_of_an_early_certificate_says_so(authority: Authority) -> None:
    text = describe(certificate_of(authority, ALICE, new_key()), NOW - timedelta(days=1))
    assert "(NOT YET)" in text


def test_the_description_of_an_authority_says_that_it_is_one(authority: Authority) -> None:
    text = describe(authority.certificate, NOW)
    assert text.startswith("authority of federation hospitals\n")


def test_the_description_of_a_request_says_that_it_permits_nothing() -> None:
    text = describe(new_request(Subject(ALICE, ("host.example",)), new_key()), NOW)
    assert text.startswith("request of owner/alice in federation hospitals\n")
    assert "nothing before it is signed" in text
    assert "host.example" in text


@pytest.mark.parametrize("key", [new_key(), new_signing_key()], ids=["ecdsa", "ed25519"])
def test_a_key_is_never_described(key: bytes, authority: Authority) -> None:
    for content in (key, authority.certificate + key):
        with pytest.raises(UsageError, match="private key, which is never shown") as raised:
            describe(content, NOW)
        assert key.decode().splitlines()[1] not in str(raised.value)


def test_a_certificate_of_no_federation_is_not_described(authority: Authority) -> None:
    with pytest.raises(UsageError):
        describe(hand_made(authority, []), NOW)
    with pytest.raises(UsageError):
        describe(b"hello", NOW)
