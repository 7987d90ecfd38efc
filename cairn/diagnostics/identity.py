"""Checks the files that a node's identity and what it pins lie in, and until when they hold."""

from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from cairn.diagnostics.findings import Finding, attempted, fault, ok, warning
from cairn.errors import UsageError
from cairn.identity.credentials import (
    ASK_FOR_PRESENT,
    RENEW,
    IdentityFiles,
    fingerprint,
    identity_faults,
)
from cairn.identity.names import NodeName, Role
from cairn.identity.pem import load_certificate
from cairn.identity.signing_keys import load_signing_key, public_signing_key_text
from cairn.identity.trust import load_pinned

SOON = timedelta(days=30)


def identity_findings(files: IdentityFiles, node: NodeName, now: datetime) -> list[Finding]:
    """The certificate, its key and the authority."""
    faults = identity_faults(files, node, now)
    if faults:
        return [fault("identity", str(error)) for error in faults]
    end = load_certificate(files.certificate).not_valid_after_utc
    return [
        ok("identity", f"{files.certificate} is of {node}, valid until {end:%Y-%m-%d}"),
        *_ending("identity", files.certificate, now, end, RENEW),
        *_ending("identity", files.authority, now, _end_of(files.authority), ASK_FOR_PRESENT),
    ]


def pin_findings(pin: Path, federation: str, authority: Path, now: datetime) -> list[Finding]:
    """The certificates that are accepted of the aggregator: this node's own authority issued them."""
    try:
        pinned = load_pinned(pin, Role.AGGREGATOR, federation, now)
    except UsageError as error:
        return [fault("pin", str(error))]
    certificates = pinned.parsed_certificates
    foreign = _foreign(certificates, authority)
    if len(foreign) == len(certificates):
        return [
            fault(
                "pin",
                f"{pin} was not issued by this node's authority {authority}, although it names the same"
                f" federation: the aggregator of that certificate refuses this node; {ASK_FOR_PRESENT} and for"
                " its authority.crt, and compare the fingerprints that `cairn identity` prints",
            )
        ]
    strange = [
        warning(
            "pin",
            f"{pin} also holds a certificate that this node's authority {authority} did not issue,"
            f" {fingerprint(each.public_bytes(Encoding.DER))}: whoever has its key is taken for the"
            " aggregator; remove it",
        )
        for each in foreign
    ]
    return [
        ok("pin", f"{pin} pins the aggregator, valid until {pinned.end:%Y-%m-%d}"),
        *strange,
        *_ending("pin", pin, now, pinned.end, ASK_FOR_PRESENT),
    ]


def signing_key_findings(path: Path) -> list[Finding]:
    """The aggregator's signing key, of which others have the public half in their files."""
    return attempted(
        "signing key",
        lambda: f"{path} belongs to {public_signing_key_text(load_signing_key(path))}",
    )


def _foreign(certificates: list[x509.Certificate], authority: Path) -> list[x509.Certificate]:
    """Those that the authority did not issue; none where it cannot be read, which is said elsewhere."""
    try:
        issuer = load_certificate(authority)
    except UsageError:
        return []
    return [certificate for certificate in certificates if not _is_issued(certificate, issuer)]


def _is_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _end_of(path: Path) -> datetime:
    return load_certificate(path).not_valid_after_utc


def _ending(check: str, path: Path, now: datetime, end: datetime, cure: str) -> list[Finding]:
    if end - now > SOON:
        return []
    days = (end - now).days
    left = "1 day" if days == 1 else f"{days} days"
    return [warning(check, f"{path} expires in {left}, on {end:%Y-%m-%d %H:%M} UTC; {cure}")]
