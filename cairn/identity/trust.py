"""Whom a node believes to be its peer, and why: a certificate that it pins, or one that its own authority issued."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cairn.errors import UsageError
from cairn.identity.credentials import Identity, check_time, fingerprint, node_of_file
from cairn.identity.names import NodeName, Role
from cairn.identity.pem import load_certificates


@dataclass(frozen=True)
class PeerTrust:
    """What the peer of this role must show: one of these certificates, as PEM, or one that they have issued.

    `file` holds them. A file of pinned certificates may have several, one after the other: while the peer
    changes its certificate, the old and the new one, so that nobody must change files in the same second.
    """

    role: Role
    federation: str
    certificates: bytes
    file: Path = field(compare=False)
    is_pinned: bool = True

    @property
    def fingerprints(self) -> str:
        """Those of the certificates: more than one while the peer changes its own."""
        return ", ".join(
            fingerprint(each.public_bytes(Encoding.DER)) for each in self.parsed_certificates
        )

    @property
    def parsed_certificates(self) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates(self.certificates)

    @property
    def end(self) -> datetime:
        """Until when one of them is valid."""
        return max(each.not_valid_after_utc for each in self.parsed_certificates)


def is_believed(trust: PeerTrust, peer: NodeName) -> bool:
    """Whether a peer with a certificate that the trust covers, and this name in it, is the one that is meant.

    Every node decides here whether it believes a peer: of a pinned one when the pin is read, before it is dialled.
    """
    return (peer.role, peer.federation) == (trust.role, trust.federation)


def of_own_authority(identity: Identity, role: Role) -> PeerTrust:
    """Trust in every node of the role that the node's own authority has issued a certificate to."""
    file = Path(identity.files.authority)
    return PeerTrust(role, identity.node.federation, identity.authority, file, is_pinned=False)


def load_pinned(path: Path, role: Role, federation: str, now: datetime) -> PeerTrust:
    """Trust in the certificates of a file that are in time. Raises UsageError where one is not of this role."""
    trust, pinned, expired = PeerTrust(role, federation, b"", path), b"", None
    for certificate in load_certificates(path):
        found = node_of_file(path, certificate)
        if not is_believed(trust, found):
            raise UsageError(
                f"{path} is the certificate of {found}, but it should be that of the {role} of"
                f" federation {federation}; ask whoever runs the {role} for its node.crt"
            )
        try:
            check_time(path, certificate, now, f"ask whoever runs the {role} for the present one")
            pinned += certificate.public_bytes(Encoding.PEM)
        except UsageError as error:
            expired = error
    if expired is not None and not pinned:
        raise expired
    return replace(trust, certificates=pinned)
