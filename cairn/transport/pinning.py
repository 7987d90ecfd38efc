"""Which certificates an owner accepts of its coordinator: those that it pins, or else the one of a coordinator.

gRPC-Python verifies that the federation's authority has issued what a peer shows, and tells a client nothing
more about it. So the peer is looked at in a handshake of its own. Its certificate must name a coordinator of
this federation, and from then on gRPC trusts that very certificate and no authority, so that nobody else can
take the peer's place between the look and the call. Nothing is looked at again until that fails.
"""

import threading

from cryptography.hazmat.primitives.serialization import Encoding

from cairn.errors import InvalidMessage, PeerUntrusted, Unavailable
from cairn.identity.credentials import Identity
from cairn.identity.names import Role, node_named_in
from cairn.identity.reload import reloading_identity, reloading_pin
from cairn.identity.trust import PeerTrust, is_believed, of_own_authority
from cairn.runtime.timeouts import CALL_SECONDS
from cairn.transport.probe import ProbeTarget, Unreachable, shown


class CoordinatorTrust:
    """Every method may be called from any thread."""

    def __init__(self, address: str, identity: Identity, pinned: PeerTrust | None) -> None:
        self._address = address
        self._identity = reloading_identity(identity)
        self._pin = None if pinned is None else reloading_pin(pinned)
        self._lock = threading.Lock()
        self._seen: bytes | None = None

    def certificates(self) -> bytes:
        """The trusted certificates, as PEM; where none is known yet the peer is looked at.

        Raises Unavailable where it cannot be reached, and PeerUntrusted where it is no coordinator of ours.
        """
        if self._pin is not None:
            return self._pin.current().certificates
        with self._lock:
            if self._seen is None:
                self._seen = self._look()
            return self._seen

    def forget(self) -> None:
        """The peer shows another certificate now: it may be renewed."""
        with self._lock:
            self._seen = None

    def _look(self) -> bytes:
        own = self._identity.current()
        trust = of_own_authority(own, Role.COORDINATOR)
        try:
            certificate = shown(ProbeTarget(self._address, own, trust, CALL_SECONDS))
        except Unreachable as error:
            raise Unavailable(str(error)) from None
        try:
            node = node_named_in(certificate)
        except InvalidMessage as error:
            raise PeerUntrusted(self._no_coordinator(f"that of no node: {error}")) from None
        if not is_believed(trust, node):
            raise PeerUntrusted(self._no_coordinator(f"that of {node}"))
        return certificate.public_bytes(Encoding.PEM)

    def _no_coordinator(self, found: str) -> str:
        federation = self._identity.current().node.federation
        return (
            f"the certificate at {self._address} is {found}, and not that of a coordinator of federation"
            f" {federation}: correct `coordinator` in this node's file"
        )
