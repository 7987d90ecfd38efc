"""What the federation's authority makes: its own certificate, and the certificates it issues.

A certificate states what the person who signs it states. Of a request only the public key is taken,
after the request has proven that its sender holds the private one.
"""

import ipaddress
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from cairn.errors import InvalidMessage, UsageError
from cairn.identity.names import KEY_USES, NodeName, node_named_in

AUTHORITY_DAYS = 3650
NODE_DAYS = 365
# Clocks differ: a certificate must be valid at once on a machine whose clock is a little late.
BACKDATE = timedelta(minutes=5)
_SCHEME = "spiffe://"
_DNS_NAME = re.compile("[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Authority:
    """The authority's certificate and key, as PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True)
class Subject:
    """Whom a certificate names, and the hosts where that node can be reached besides localhost."""

    node: NodeName
    hosts: tuple[str, ...] = ()

    def alternative_names(self) -> x509.SubjectAlternativeName:
        names = [x509.UniformResourceIdentifier(self.node.uri)]
        hosts = (self.node.name, "localhost", *self.hosts, "127.0.0.1", "::1")
        return x509.SubjectAlternativeName([*names, *dict.fromkeys(_host_name(h) for h in hosts)])


def new_key() -> bytes:
    """Make a node's ECDSA P-256 key, as PEM."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def new_signing_key() -> bytes:
    """Make the Ed25519 key that an aggregator signs with, as PEM."""
    return _key_pem(Ed25519PrivateKey.generate())


def new_authority(federation: str, now: datetime, days: int = AUTHORITY_DAYS) -> Authority:
    """Make a federation's authority. It issues node certificates and no further authorities."""
    pem = new_key()
    key = _load_key(pem)
    name = _subject_name(federation, "authority")
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(_SCHEME + federation)])
    end = now + timedelta(days=days)
    builder = (
        _builder(x509.CertificateBuilder(name, name, key.public_key()), now, end, authority=True)
        .add_extension(names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Authority(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), pem)


def new_request(subject: Subject, key: bytes) -> bytes:
    """Make the request for a certificate, as PEM, with the proof that its maker holds the key."""
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject_name(subject.node.federation, subject.node.name))
        .add_extension(subject.alternative_names(), critical=False)
        .sign(_load_key(key), hashes.SHA256())
    )
    return request.public_bytes(Encoding.PEM)


def issue(
    authority: Authority, request: bytes, subject: Subject, now: datetime, days: int = NODE_DAYS
) -> bytes:
    """Issue a certificate for the key of the request, as PEM. Raises UsageError where it must not."""
    public_key = _requested_key(load_request(request), subject.node)
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    key = _load_key(authority.key)
    federation = federation_of(issuer)
    if key.public_key() != issuer.public_key():
        raise UsageError("the authority's key does not belong to the authority's certificate")
    if subject.node.federation != federation:
        raise UsageError(f"the authority of federation {federation} cannot sign for {subject.node}")
    end = now + timedelta(days=days)
    if end > issuer.not_valid_after_utc:
        raise UsageError(
            f"the authority itself ends on {issuer.not_valid_after_utc:%Y-%m-%d}, and a certificate"
            f" of {days} days would outlive it; ask for fewer days"
        )
    issuer_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    name = _subject_name(federation, subject.node.name)
    builder = (
        _builder(x509.CertificateBuilder(issuer.subject, name, public_key), now, end)
        .add_extension(x509.ExtendedKeyUsage(KEY_USES[subject.node.role]), critical=False)
        .add_extension(subject.alternative_names(), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id),
            critical=False,
        )
    )
    certificate = builder.sign(key, hashes.SHA256())
    return certificate.public_bytes(Encoding.PEM)


def _builder(
    named: x509.CertificateBuilder, now: datetime, end: datetime, *, authority: bool = False
) -> x509.CertificateBuilder:
    """What an authority's certificate and a node's have in common."""
    constraints = x509.BasicConstraints(ca=authority, path_length=0 if authority else None)
    return (
        named.serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(end)
        .add_extension(constraints, critical=True)
        .add_extension(_key_usage(authority=authority), critical=True)
    )


def load_request(pem: bytes) -> x509.CertificateSigningRequest:
    """Read a request. Raises UsageError where it is none or its sender does not hold the key."""
    try:
        request = x509.load_pem_x509_csr(pem)
        proven = request.is_signature_valid
        _ = request.extensions  # parsed on demand: now, so that a malformed one is found here
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise UsageError(
            "this is no request in PEM; `cairn request` makes one as node.csr"
        ) from error
    if not proven:
        raise UsageError("the request was changed after it was made; make it again")
    return request


def federation_of(authority: x509.Certificate) -> str:
    """Return the federation of an authority. Raises UsageError for any other certificate."""
    try:
        names = authority.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        is_authority = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound):
        uris, is_authority = [], False
    if not is_authority or len(uris) != 1 or not uris[0].startswith(_SCHEME):
        raise UsageError("this is not an authority's certificate; `cairn init` makes authority.crt")
    return uris[0].removeprefix(_SCHEME)


def _requested_key(
    request: x509.CertificateSigningRequest, node: NodeName
) -> ec.EllipticCurvePublicKey:
    if any(isinstance(e.value, x509.SubjectAlternativeName) for e in request.extensions):
        try:
            asked = node_named_in(request)
        except InvalidMessage as error:
            raise UsageError(f"the request cannot be signed: {error}") from error
        if asked != node:
            raise UsageError(f"the request is of {asked}, but you state that it is of {node}")
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UsageError("the request's key is not ECDSA P-256; make it with `cairn request`")
    return key


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _DNS_NAME.fullmatch(host):
            raise UsageError(
                f"{host!r} is neither a host name nor an IP address; give it without port"
            ) from None
        return x509.DNSName(host)


def _subject_name(federation: str, name: str) -> x509.Name:
    """For people who list certificates. No code reads it."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError("the key is not an ECDSA key; `cairn request` and `cairn init` make one")
    return key
