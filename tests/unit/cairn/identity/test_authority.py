"""The certificates, judged by OpenSSL: by its command line, and by TLS handshakes of the ssl module."""

import shutil
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from cairn.errors import UsageError
from cairn.identity.authority import (
    Authority,
    Subject,
    federation_of,
    issue,
    load_request,
    new_authority,
    new_key,
    new_request,
)
from cairn.identity.credentials import key_fingerprint
from cairn.identity.names import NodeName, Role

NOW = datetime.now(UTC)
OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="the openssl command is the judge")


def node(role: Role, name: str, federation: str = "hospitals") -> NodeName:
    return NodeName(federation, role, name)


ALICE = Subject(node(Role.OWNER, "alice"))
AGGREGATOR = Subject(node(Role.AGGREGATOR, "aggregator"), ("agg.example.org", "192.0.2.7"))
COORDINATOR = Subject(node(Role.COORDINATOR, "coordinator"))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return new_authority("hospitals", NOW)


def certified(authority: Authority, subject: Subject) -> tuple[bytes, bytes]:
    key = new_key()
    return issue(authority, new_request(subject, key), subject, NOW), key


def openssl(*arguments: str | Path) -> str:
    assert OPENSSL is not None
    done = subprocess.run([OPENSSL, *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def extensions(pem: bytes, directory: Path) -> str:
    """The extensions as openssl prints them, one line each."""
    (directory / "x.crt").write_bytes(pem)
    text = openssl("x509", "-in", directory / "x.crt", "-noout", "-text")
    return " ".join(text.partition("X509v3 extensions:")[2].split())


@needs_openssl
def test_an_owners_certificate_is_for_dialling_only(authority: Authority, tmp_path: Path) -> None:
    certificate, _ = certified(authority, ALICE)
    text = extensions(certificate, tmp_path)
    assert "X509v3 Extended Key Usage: TLS Web Client Authentication X509v3" in text
    assert "X509v3 Basic Constraints: critical CA:FALSE" in text
    assert "X509v3 Key Usage: critical Digital Signature X509v3" in text
    assert (
        "URI:spiffe://hospitals/owner/alice, DNS:alice, DNS:localhost,"
        " IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1 X509v3"
    ) in text


@needs_openssl
def test_an_aggregators_certificate_is_for_being_dialled_and_for_asking_its_own_health(
    authority: Authority, tmp_path: Path
) -> None:
    text = extensions(certified(authority, AGGREGATOR)[0], tmp_path)
    assert "TLS Web Server Authentication, TLS Web Client Authentication X509v3" in text
    assert "DNS:localhost, DNS:agg.example.org, IP Address:192.0.2.7, IP Address:127.0.0.1" in text


@needs_openssl
def test_a_coordinators_certificate_is_for_both(authority: Authority, tmp_path: Path) -> None:
    text = extensions(certified(authority, COORDINATOR)[0], tmp_path)
    assert "TLS Web Server Authentication, TLS Web Client Authentication X509v3" in text


@needs_openssl
def test_the_authority_signs_certificates_and_nothing_else(
    authority: Authority, tmp_path: Path
) -> None:
    text = extensions(authority.certificate, tmp_path)
    assert "X509v3 Basic Constraints: critical CA:TRUE, pathlen:0" in text
    assert "X509v3 Key Usage: critical Certificate Sign X509v3" in text


@needs_openssl
@pytest.mark.parametrize(
    ("subject", "purpose", "verdict"),
    [
        (ALICE, "sslclient", "OK"),
        (ALICE, "sslserver", "unsuitable certificate purpose"),
        (AGGREGATOR, "sslserver", "OK"),
        (AGGREGATOR, "sslclient", "OK"),
        (COORDINATOR, "sslserver", "OK"),
        (COORDINATOR, "sslclient", "OK"),
    ],
    ids=str,
)
def test_openssl_agrees_what_each_role_may_do(
    authority: Authority, tmp_path: Path, subject: Subject, purpose: str, verdict: str
) -> None:
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    (tmp_path / "node.crt").write_bytes(certified(authority, subject)[0])
    said = openssl(
        "verify",
        "-x509_strict",
        "-purpose",
        purpose,
        "-CAfile",
        tmp_path / "ca.crt",
        tmp_path / "node.crt",
    )
    assert verdict in said


def tls_context(
    side: ssl._SSLMethod, directory: Path, certificate: bytes, key: bytes, trusted: bytes
) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.verify_mode = ssl.CERT_REQUIRED
    # Strict as Python 3.13 is by default; a pinned certificate ends the chain, as it does in gRPC.
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=trusted.decode())
    (directory / "chain.pem").write_bytes(certificate + key)
    context.load_cert_chain(directory / "chain.pem")
    return context


def handshake(dialled: ssl.SSLContext, dialling: ssl.SSLContext, host: str) -> None:
    """Let two ends shake hands in memory. Raises ssl.SSLError where one refuses the other."""
    to_dialled, to_dialling = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = dialling.wrap_bio(to_dialling, to_dialled, server_hostname=host)
    there = dialled.wrap_bio(to_dialled, to_dialling, server_side=True)
    waiting = [here, there]
    while waiting:
        end = waiting.pop(0)
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(end)
    here.write(b"?")
    assert there.read(1) == b"?"


@pytest.mark.parametrize("host", ["aggregator", "localhost", "127.0.0.1", "::1", "agg.example.org"])
def test_an_owner_reaches_the_pinned_aggregator_under_each_of_its_hosts(
    authority: Authority, tmp_path: Path, host: str
) -> None:
    pinned, key = certified(authority, AGGREGATOR)
    dialled = tls_context(ssl.PROTOCOL_TLS_SERVER, tmp_path, pinned, key, authority.certificate)
    dialling = tls_context(ssl.PROTOCOL_TLS_CLIENT, tmp_path, *certified(authority, ALICE), pinned)
    handshake(dialled, dialling, host)


def test_an_owner_refuses_another_aggregator_of_the_same_authority(
    authority: Authority, tmp_path: Path
) -> None:
    pinned, _ = certified(authority, AGGREGATOR)
    dialled = tls_context(
        ssl.PROTOCOL_TLS_SERVER, tmp_path, *certified(authority, AGGREGATOR), authority.certificate
    )
    dialling = tls_context(ssl.PROTOCOL_TLS_CLIENT, tmp_path, *certified(authority, ALICE), pinned)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(dialled, dialling, "localhost")


def test_an_owner_cannot_pose_as_the_coordinator(authority: Authority, tmp_path: Path) -> None:
    mallory = certified(authority, Subject(node(Role.OWNER, "mallory"), ("coordinator",)))
    dialled = tls_context(ssl.PROTOCOL_TLS_SERVER, tmp_path, *mallory, authority.certificate)
    dialling = tls_context(
        ssl.PROTOCOL_TLS_CLIENT, tmp_path, *certified(authority, ALICE), authority.certificate
    )
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        handshake(dialled, dialling, "coordinator")


def test_a_node_is_refused_by_a_federation_of_the_same_name(
    authority: Authority, tmp_path: Path
) -> None:
    forged = certified(new_authority("hospitals", NOW), ALICE)
    pinned, key = certified(authority, AGGREGATOR)
    dialled = tls_context(ssl.PROTOCOL_TLS_SERVER, tmp_path, pinned, key, authority.certificate)
    dialling = tls_context(ssl.PROTOCOL_TLS_CLIENT, tmp_path, *forged, pinned)
    with pytest.raises(ssl.SSLError):
        handshake(dialled, dialling, "localhost")


def test_a_certificate_is_valid_from_five_minutes_ago_and_for_the_days_stated(
    authority: Authority,
) -> None:
    pem = issue(authority, new_request(ALICE, new_key()), ALICE, NOW, days=30)
    certificate = x509.load_pem_x509_certificate(pem)
    whole = NOW.replace(microsecond=0)
    assert certificate.not_valid_before_utc == whole - timedelta(minutes=5)
    assert certificate.not_valid_after_utc == whole + timedelta(days=30)


def test_a_certificate_cannot_outlive_its_authority() -> None:
    short = new_authority("hospitals", NOW, days=10)
    with pytest.raises(UsageError, match="the authority itself ends on"):
        issue(short, new_request(ALICE, new_key()), ALICE, NOW, days=11)


def test_the_certificate_and_its_request_have_one_key_fingerprint(authority: Authority) -> None:
    request = new_request(ALICE, new_key())
    certificate = x509.load_pem_x509_certificate(issue(authority, request, ALICE, NOW))
    assert key_fingerprint(load_request(request)) == key_fingerprint(certificate)


def test_a_request_of_another_name_is_refused_with_both_names(authority: Authority) -> None:
    request = new_request(Subject(node(Role.OWNER, "bob")), new_key())
    with pytest.raises(UsageError, match=r"owner/bob .* owner/alice"):
        issue(authority, request, ALICE, NOW)


def test_a_request_of_another_role_is_refused(authority: Authority) -> None:
    request = new_request(Subject(node(Role.COORDINATOR, "alice")), new_key())
    with pytest.raises(UsageError, match=r"coordinator/alice .* owner/alice"):
        issue(authority, request, ALICE, NOW)


def foreign_request(*extensions: x509.ExtensionType) -> bytes:
    """A request as another tool would make it."""
    private = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(private, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_nothing_but_the_key_is_taken_from_a_request(authority: Authority) -> None:
    request = foreign_request(
        x509.BasicConstraints(ca=True, path_length=None),
        x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]),
    )
    certificate = x509.load_pem_x509_certificate(issue(authority, request, ALICE, NOW))
    mine = x509.load_pem_x509_certificate(certified(authority, ALICE)[0])
    same = (x509.BasicConstraints, x509.ExtendedKeyUsage, x509.SubjectAlternativeName)
    for kind in same:
        expected = mine.extensions.get_extension_for_class(kind)
        assert certificate.extensions.get_extension_for_class(kind) == expected
    assert certificate.subject == mine.subject


def test_a_request_with_two_names_is_refused(authority: Authority) -> None:
    two = [
        x509.UniformResourceIdentifier(ALICE.node.uri),
        x509.UniformResourceIdentifier(COORDINATOR.node.uri),
    ]
    with pytest.raises(UsageError, match="names 2 nodes"):
        issue(authority, foreign_request(x509.SubjectAlternativeName(two)), ALICE, NOW)


def test_a_request_that_was_changed_on_the_way_is_refused(authority: Authority) -> None:
    der = x509.load_pem_x509_csr(new_request(ALICE, new_key())).public_bytes(Encoding.DER)
    changed = x509.load_der_x509_csr(der.replace(b"owner/alice", b"owner/mallo"))
    with pytest.raises(UsageError, match="was changed"):
        issue(authority, changed.public_bytes(Encoding.PEM), ALICE, NOW)


def test_a_request_with_a_key_of_another_kind_is_refused(authority: Authority) -> None:
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(ed25519.Ed25519PrivateKey.generate(), None)
    )
    with pytest.raises(UsageError, match=r"not ECDSA P-256.*cairn request"):
        issue(authority, request.public_bytes(Encoding.PEM), ALICE, NOW)


def test_a_file_that_is_no_request_is_refused(authority: Authority) -> None:
    with pytest.raises(UsageError, match="no request in PEM"):
        issue(authority, authority.certificate, ALICE, NOW)


def test_an_authority_signs_for_its_own_federation_only(authority: Authority) -> None:
    stranger = Subject(node(Role.OWNER, "alice", federation="banks"))
    with pytest.raises(UsageError, match="authority of federation hospitals cannot sign"):
        issue(authority, new_request(stranger, new_key()), stranger, NOW)


def test_a_node_cannot_be_the_authority_of_others(authority: Authority) -> None:
    with pytest.raises(UsageError, match="not an authority's certificate"):
        issue(Authority(*certified(authority, ALICE)), new_request(ALICE, new_key()), ALICE, NOW)


def test_an_authority_with_another_key_cannot_sign(authority: Authority) -> None:
    mixed = Authority(authority.certificate, new_key())
    with pytest.raises(UsageError, match="does not belong to the authority's certificate"):
        issue(mixed, new_request(ALICE, new_key()), ALICE, NOW)


@pytest.mark.parametrize("host", ["*.example.org", "example.org:443", "", "a b", "münchen.example"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="neither a host name nor an IP address"):
        new_request(Subject(ALICE.node, (host,)), new_key())


def test_a_private_key_is_not_shown_where_an_authority_is_printed(authority: Authority) -> None:
    assert "PRIVATE" not in repr(authority)


def self_signed(*uris: str, ca: bool = True) -> x509.Certificate:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([])
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
    builder = (
        x509.CertificateBuilder(name, name, key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
    )
    if uris:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256())


def test_an_authority_is_one_by_its_one_name_and_by_what_it_may_sign() -> None:
    assert federation_of(self_signed("spiffe://clinics")) == "clinics"
    for other in (
        self_signed(),
        self_signed("https://clinics"),
        self_signed("spiffe://clinics", "spiffe://wards"),
        self_signed("spiffe://clinics", ca=False),
    ):
        with pytest.raises(UsageError, match="this is not an authority's certificate"):
            federation_of(other)
