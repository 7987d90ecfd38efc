"""The name of a node, and the certificate that states it.

A node's name stands in the one URI of its certificate's subject alternative name,
`spiffe://<federation>/<role>/<name>`. Nothing else in a certificate is ever read as a name: gRPC's own
list of names mixes URIs with DNS names, and a common name is anybody's to choose.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from cairn.errors import InvalidMessage

NODE_NAME_PATTERN = (
    "[a-z0-9][a-z0-9-]{0,62}"  # of a federation and of a node: fit for a certificate
)
_URI = re.compile(f"spiffe://({NODE_NAME_PATTERN})/([a-z]+)/({NODE_NAME_PATTERN})")


class Role(StrEnum):
    OWNER = "owner"
    AGGREGATOR = "aggregator"
    COORDINATOR = "coordinator"


# Owners open no port, so their certificates do not serve for listening.
KEY_USES = {
    Role.OWNER: {ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth"},
    # The aggregator dials only itself, to ask its own health.
    Role.AGGREGATOR: {
        ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
        ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    },
    Role.COORDINATOR: {
        ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
        ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    },
}


@dataclass(frozen=True)
class NodeName:
    """A node's federation, role and name. Raises InvalidMessage for what cannot be a name."""

    federation: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        for name in (self.federation, self.name):
            if not re.fullmatch(NODE_NAME_PATTERN, name):
                raise InvalidMessage(
                    f"{name!r} cannot be a name: a federation and a node are named by 1 to 63 of"
                    " a-z, 0-9 and '-', and not with '-' first"
                )

    def __str__(self) -> str:
        return f"{self.role}/{self.name} in federation {self.federation}"

    @property
    def uri(self) -> str:
        return f"spiffe://{self.federation}/{self.role}/{self.name}"

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Read the URI of a certificate. Raises InvalidMessage for any other text."""
        parts = _URI.fullmatch(uri)
        if parts is None or parts[2] not in list(Role):
            raise InvalidMessage(f"{uri!r} is not spiffe://FEDERATION/ROLE/NAME")
        return cls(parts[1], Role(parts[2]), parts[3])


def hosts_named_in(document: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    """The host names and IP addresses that the document holds."""
    try:
        names = document.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def node_named_in(document: x509.Certificate | x509.CertificateSigningRequest) -> NodeName:
    """Return the name in the only URI of the document. Raises InvalidMessage without exactly one."""
    try:
        names = document.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (
        ValueError,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,  # beside the URI, too: such a document is not read in parts
    ):
        uris = []
    if len(uris) != 1:
        raise InvalidMessage(f"it names {len(uris)} nodes by URI where it must name one")
    return NodeName.parse(uris[0])
