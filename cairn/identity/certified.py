"""Who a peer is: what its certificate says, once its TLS handshake has proven it."""

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cairn.errors import CallerNotAllowed, InvalidMessage
from cairn.identity.credentials import RENEW, fingerprint, key_fingerprint
from cairn.identity.names import NodeName, node_named_in


@dataclass(frozen=True)
class Certified:
    """What a peer's certificate says: who it is, and until when.

    `fingerprints` are that of the certificate and that of its public key, as `cairn identity` prints them.
    """

    node: NodeName
    not_after: datetime
    fingerprints: tuple[str, str]

    def check_end(self, unix_ms: int) -> None:
        """Raise CallerNotAllowed where the certificate has ended by this time."""
        if unix_ms > self.not_after.timestamp() * 1000:
            raise CallerNotAllowed(
                f"the certificate of {self.node} expired on {self.not_after:%Y-%m-%d %H:%M} UTC; {RENEW}"
            )


@lru_cache(maxsize=2048)
def certified(pem: bytes) -> Certified:
    """Return what a peer's certificate says, after its TLS handshake has proven it.

    Raises CallerNotAllowed for a certificate without exactly one name. Asked at every call, so the
    answers are kept; a certificate's answer never changes.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        return Certified(
            node_named_in(certificate),
            certificate.not_valid_after_utc,
            (fingerprint(certificate.public_bytes(Encoding.DER)), key_fingerprint(certificate)),
        )
    except (ValueError, InvalidMessage) as error:
        raise CallerNotAllowed(f"the caller's certificate is of no federation: {error}") from error
