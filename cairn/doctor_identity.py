"""Checks the files that a node's identity and what it pins lie in, and until when they hold."""

from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from cairn.errors import UsageError
from cairn.findings import Finding, attempted, fault, ok, warning
from cairn.identity import (
    ASK_FOR_PRESENT,
    RENEW,
    IdentityFiles,
    NodeName,
    identity_faults,
    load_pinned_aggregator,
    load_signing_key,
    public_signing_key_text,
)
from cairn.pem import load_certificate

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


def pin_findings(pin: Path, federation: str, now: datetime) -> list[Finding]:
    """The certificates that are accepted of the aggregator."""
    try:
        pinned = load_pinned_aggregator(pin, federation, now)
    except UsageError as error:
        return [fault("pin", str(error))]
    certificates = x509.load_pem_x509_certificates(pinned.certificates)
    end = max(certificate.not_valid_after_utc for certificate in certificates)
    return [
        ok("pin", f"{pin} pins the aggregator, valid until {end:%Y-%m-%d}"),
        *_ending("pin", pin, now, end, ASK_FOR_PRESENT),
    ]


def signing_key_findings(path: Path) -> list[Finding]:
    """The aggregator's signing key, of which others have the public half in their files."""
    return attempted(
        "signing key",
        lambda: f"{path} belongs to {public_signing_key_text(load_signing_key(path))}",
    )


def _end_of(path: Path) -> datetime:
    return load_certificate(path).not_valid_after_utc


def _ending(check: str, path: Path, now: datetime, end: datetime, cure: str) -> list[Finding]:
    if end - now > SOON:
        return []
    days = (end - now).days
    left = "1 day" if days == 1 else f"{days} days"
    return [warning(check, f"{path} expires in {left}, on {end:%Y-%m-%d %H:%M} UTC; {cure}")]
