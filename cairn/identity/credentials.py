"""Who a node is: the certificate and key that it starts with."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cairn.errors import InvalidMessage, UsageError
from cairn.identity.names import KEY_USES, NodeName, Role, node_named_in
from cairn.identity.pem import load_certificate, load_key

P = ParamSpec("P")
T = TypeVar("T")

RENEW = "renew it with `cairn request` on this machine and `cairn sign` at the authority"
ASK_FOR_PRESENT = "ask whoever runs the aggregator for the present one"


@dataclass(frozen=True)
class Identity:
    """A node's own certificate and key and its federation's authority, as PEM."""

    node: NodeName
    certificate: bytes
    key: bytes = field(repr=False)
    authority: bytes
    not_after: datetime
    files: "IdentityFiles" = field(repr=False, compare=False)  # where it is renewed

    @property
    def fingerprint(self) -> str:
        certificate = x509.load_pem_x509_certificate(self.certificate)
        return fingerprint(certificate.public_bytes(Encoding.DER))


class IdentityFiles(Protocol):
    """Where a node's settings say that its identity lies."""

    @property
    def certificate(self) -> Path: ...
    @property
    def key(self) -> Path: ...
    @property
    def authority(self) -> Path: ...


def fingerprint(der: bytes) -> str:
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def key_fingerprint(document: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """The fingerprint of the public key: the same in a request and in the certificate issued for it."""
    key = document.public_key()
    return fingerprint(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def load_identity(files: IdentityFiles, node: NodeName, now: datetime) -> Identity:
    """Load a node's identity. Raises UsageError for anything that would fail at a peer later."""
    faults: list[UsageError] = []
    identity = _examined(files, node, now, faults)
    if identity is None:
        raise faults[0]
    return identity


def identity_faults(files: IdentityFiles, node: NodeName, now: datetime) -> list[UsageError]:
    """Everything for which `load_identity` refuses these files, not only the first."""
    faults: list[UsageError] = []
    _examined(files, node, now, faults)
    return faults


def _examined(
    files: IdentityFiles, node: NodeName, now: datetime, faults: list[UsageError]
) -> Identity | None:
    """The identity; None where there is a fault, which is then added to `faults`."""
    certificate = _attempt(faults, load_certificate, files.certificate)
    authority = _attempt(faults, load_certificate, files.authority)
    loaded = _attempt(faults, load_key, files.key)
    if certificate is not None:
        _attempt(faults, _check_name, files.certificate, certificate, node)
    if certificate is not None and loaded is not None:
        _attempt(faults, _check_key, files, certificate, loaded[0])
    if certificate is not None and authority is not None:
        _attempt(faults, _check_issuer, files, certificate, authority)
    if certificate is not None:
        _attempt(faults, check_time, files.certificate, certificate, now, RENEW)
    if authority is not None:
        _attempt(faults, check_time, files.authority, authority, now, ASK_FOR_PRESENT)
    if certificate is not None:
        _attempt(faults, _check_uses, files.certificate, certificate, node.role)
    if faults or certificate is None or authority is None or loaded is None:
        return None
    return Identity(
        node=node,
        certificate=certificate.public_bytes(Encoding.PEM),
        key=loaded[1],
        authority=authority.public_bytes(Encoding.PEM),
        not_after=certificate.not_valid_after_utc,
        files=files,
    )


def _attempt(
    faults: list[UsageError], check: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T | None:
    try:
        return check(*args, **kwargs)
    except UsageError as fault:
        faults.append(fault)
        return None


def node_of_file(path: Path, certificate: x509.Certificate) -> NodeName:
    """Whose certificate it is. Raises UsageError, which names the file, where it is no node's."""
    try:
        return node_named_in(certificate)
    except InvalidMessage as error:
        raise UsageError(f"{path} is not the certificate of a node: {error}") from error


def _check_name(path: Path, certificate: x509.Certificate, node: NodeName) -> None:
    found = node_of_file(path, certificate)
    if found != node:
        raise UsageError(f"{path} is the certificate of {found}, but this node is {node}")


def _check_key(files: IdentityFiles, certificate: x509.Certificate, key: PrivateKeyTypes) -> None:
    if key.public_key() != certificate.public_key():
        raise UsageError(
            f"the key {files.key} does not belong to the certificate {files.certificate};"
            " give the two files that were made together"
        )


def _check_issuer(
    files: IdentityFiles, certificate: x509.Certificate, authority: x509.Certificate
) -> None:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise UsageError(
            f"{files.certificate} was not issued by the authority {files.authority}; ask whoever runs"
            " the aggregator for authority.crt, or have the certificate signed again"
        ) from error


def check_time(path: Path, certificate: x509.Certificate, now: datetime, cure: str) -> None:
    """Raise UsageError, which names the file and the cure, where it is not valid at this time."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        raise UsageError(f"{path} expired on {end:%Y-%m-%d %H:%M} UTC; {cure}")
    if now < begin:
        raise UsageError(
            f"{path} is valid only from {begin:%Y-%m-%d %H:%M} UTC on; set this machine's clock"
        )


def _check_uses(path: Path, certificate: x509.Certificate, role: Role) -> None:
    try:
        found = set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        found = set()
    missing = [name for use, name in KEY_USES[role].items() if use not in found]
    if missing:
        raise UsageError(
            f"{path} may not be used by the role {role}: its extended key usage lacks"
            f" {' and '.join(missing)}; have it signed again with `cairn sign --role {role}`"
        )
