"""Says in words what a certificate or a request is, for a person who holds the file. Pure."""

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cairn.errors import InvalidMessage, UsageError
from cairn.identity.authority import federation_of, load_request
from cairn.identity.credentials import fingerprint, key_fingerprint
from cairn.identity.names import NodeName, Role, hosts_named_in, node_named_in
from cairn.runtime.quoting import quoted

_MAY = {
    Role.OWNER: "dial the coordinator and the aggregator, and push updates; others cannot dial it",
    Role.AGGREGATOR: "take updates from owners and hand averages to the coordinator; it dials nobody",
    Role.COORDINATOR: "invite owners, and collect averages from the aggregator",
}


def describe(pem: bytes, now: datetime) -> str:
    """Describe a certificate or a request. Raises UsageError for anything else, above all for a key."""
    if b"PRIVATE KEY" in pem:
        raise UsageError("this is a private key, which is never shown; give the .crt or .csr file")
    if b"CERTIFICATE REQUEST" in pem:
        return _request(load_request(pem))
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise UsageError("this is neither a certificate of Cairn in PEM nor a request") from error
    return _authority(certificate, now) if constraints.ca else _node(certificate, now)


def _node(certificate: x509.Certificate, now: datetime) -> str:
    node = _named(certificate)
    return _lines(
        f"certificate of {node}",
        {
            "uri": node.uri,
            "hosts": ", ".join(hosts_named_in(certificate)),
            "may": _MAY[node.role],
            **_validity(certificate, now),
            "fingerprint": fingerprint(certificate.public_bytes(Encoding.DER)),
            "public key": key_fingerprint(certificate),
        },
    )


def _authority(certificate: x509.Certificate, now: datetime) -> str:
    return _lines(
        f"authority of federation {federation_of(certificate)}",
        {
            "may": "issue the certificates of this federation's nodes; it is no node itself",
            **_validity(certificate, now),
            "fingerprint": fingerprint(certificate.public_bytes(Encoding.DER)),
            "public key": key_fingerprint(certificate),
        },
    )


def _request(request: x509.CertificateSigningRequest) -> str:
    node = _named(request)
    return _lines(
        f"request of {node}",
        {
            "uri": node.uri,
            "hosts": ", ".join(hosts_named_in(request)),
            "may": "nothing before it is signed with `cairn sign`",
            "public key": key_fingerprint(request),
        },
    )


def _named(document: x509.Certificate | x509.CertificateSigningRequest) -> NodeName:
    try:
        return node_named_in(document)
    except InvalidMessage as error:
        raise UsageError(f"this is of no node of a federation: {error}") from error


def _validity(certificate: x509.Certificate, now: datetime) -> dict[str, str]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    left = f"{(end - now).days} days left" if now <= end else "EXPIRED"
    return {
        "valid from": f"{begin:%Y-%m-%d %H:%M} UTC{'' if begin <= now else ' (NOT YET)'}",
        "valid until": f"{end:%Y-%m-%d %H:%M} UTC ({left})",
    }


def _lines(title: str, facts: dict[str, str]) -> str:
    return "\n".join([title, *(f"  {name:<13}{quoted(fact)}" for name, fact in facts.items())])
