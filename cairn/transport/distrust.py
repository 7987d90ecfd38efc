"""Why the certificate that a peer shows is not accepted, and what to do about it. Pure."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cairn.errors import InvalidMessage
from cairn.identity.credentials import fingerprint
from cairn.identity.names import node_named_in


@dataclass(frozen=True)
class Trust:
    """What the peer's certificate must be, or be issued by, as PEM; and the file that says so."""

    pem: bytes
    file: Path
    pinned: bool


def other_host(address: str, host: str, shown: x509.Certificate) -> str:
    """The sentence for a trusted certificate of other host names."""
    return (
        f"the certificate at {address} holds the names {_hosts(shown)} and not {host}: dial one of them,"
        f" or have it signed again with `cairn sign --host {host}`"
    )


def distrusted(address: str, trust: Trust, shown: x509.Certificate, now: datetime) -> str:
    """The sentence for a certificate that is out of date, or is not the one that is trusted."""
    begin, end = shown.not_valid_before_utc, shown.not_valid_after_utc
    if not begin <= now <= end:
        return (
            f"the certificate at {address} is valid from {begin:%Y-%m-%d %H:%M} to"
            f" {end:%Y-%m-%d %H:%M} UTC: whoever runs that node renews it, or a clock is wrong"
        )
    found = f"{_named(shown)}, {fingerprint(shown.public_bytes(Encoding.DER))}"
    if trust.pinned:
        return (
            f"the certificate at {address} is another than the pinned one of {trust.file}: it is {found};"
            " ask whoever runs that node for its present node.crt, or correct the address"
        )
    return (
        f"the certificate at {address} was not issued by the authority {trust.file}: it is {found};"
        " the two nodes need certificates of one authority, or correct the address"
    )


def _named(certificate: x509.Certificate) -> str:
    try:
        return f"that of {node_named_in(certificate)}"
    except InvalidMessage:
        return "of no node"


def _hosts(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "(none)"
    hosts = names.get_values_for_type(x509.DNSName)
    hosts += [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
    return ", ".join(hosts) or "(none)"
