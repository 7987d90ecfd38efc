"""Reaches a peer step by step, so that it can be said which step fails: name, port, certificates.

The nodes dial with gRPC, which reports all of it as UNAVAILABLE. Nothing is sent but a TLS handshake.
"""

import socket
import ssl
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import Empty, Queue

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cairn.address import Address
from cairn.errors import CairnError, InvalidMessage
from cairn.identity.credentials import Identity, fingerprint
from cairn.identity.names import NodeName, hosts_named_in, node_named_in
from cairn.identity.trust import PeerTrust

# Numbers of OpenSSL's: X509_V_ERR_..._MISMATCH.
_OTHER_HOST = {62, 64}


class Unreachable(CairnError):
    """A step failed. The text names the cause and the cure."""


class NothingListens(Unreachable):
    """The machine answers that nobody has the port."""


@dataclass(frozen=True)
class ProbeTarget:
    """From this node to a peer: where it is, who we are, what we trust, and how long a step may take."""

    address: str
    identity: Identity
    trust: PeerTrust
    seconds: float

    @property
    def host(self) -> str:
        return Address.parse(self.address).host


def probe(target: ProbeTarget) -> NodeName:
    """Return who answers there. Raises Unreachable, which says at which step it failed and why."""
    certificate = shown(target)
    try:
        return node_named_in(certificate)
    except InvalidMessage as error:
        raise Unreachable(
            f"the certificate at {target.address} is not that of a node: {error}; compare the address"
        ) from None


def shown(target: ProbeTarget) -> x509.Certificate:
    """Return the certificate of who answers there, which is trusted. Raises Unreachable as `probe` does."""
    _resolve(target)
    with _connect(target) as connection:
        return _shake_hands(target, connection)


def _resolve(target: ProbeTarget) -> None:
    """The system's resolver knows no deadline, so it is asked in a thread that is left alone."""
    answers: Queue[OSError | None] = Queue()

    def ask() -> None:
        try:
            socket.getaddrinfo(target.host, None, type=socket.SOCK_STREAM)
            answers.put(None)
        except (OSError, UnicodeError) as error:  # a name that cannot be asked for is none
            answers.put(error if isinstance(error, OSError) else OSError(0, str(error)))

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        error = answers.get(timeout=target.seconds)
        why = error and f" ({error.strerror})"
    except Empty:
        why = f" (no answer within {target.seconds:g} seconds)"
    if why:
        raise Unreachable(
            f"the name {target.host} does not resolve{why}: correct the address {target.address} in this"
            " node's file, or the name service of this machine"
        )


def _connect(target: ProbeTarget) -> socket.socket:
    parts = Address.parse(target.address)
    try:
        return socket.create_connection((parts.host, parts.port), target.seconds)
    except ConnectionRefusedError:
        raise NothingListens(f"nothing listens at {target.address} (connection refused)") from None
    except TimeoutError:
        raise Unreachable(
            f"{target.address} does not answer within {target.seconds:g} seconds: its machine is off, or a"
            " firewall drops what is sent there"
        ) from None
    except OSError as error:
        raise Unreachable(
            f"{target.address} cannot be reached ({error.strerror}): see to the network between the two"
        ) from None


def _shake_hands(target: ProbeTarget, connection: socket.socket) -> x509.Certificate:
    try:
        with _context(target).wrap_socket(connection, server_hostname=target.host) as tls:
            if tls.selected_alpn_protocol() != "h2":
                raise Unreachable(
                    f"what listens at {target.address} speaks TLS but not gRPC, so it is no node of a"
                    " federation: correct the address"
                )
            certificate = _certificate(tls)
            _await_answer(target, tls)
            return certificate
    except ssl.SSLCertVerificationError as error:
        raise Unreachable(_distrusted(target, error)) from None
    except TimeoutError:
        raise Unreachable(
            f"what listens at {target.address} accepts connections and says nothing for {target.seconds:g}"
            " seconds: the node there hangs, or it is another program; restart it, or correct the address"
        ) from None
    except OSError as error:  # of which an SSLError is one
        raise Unreachable(
            f"what listens at {target.address} is no node of a federation, it does not answer TLS"
            f" ({_reason(error)}): correct the address"
        ) from None


def _context(target: ProbeTarget) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a pinned certificate has no issuer here
    context.load_verify_locations(cadata=target.trust.certificates.decode())
    files = target.identity.files
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    return context


def _certificate(tls: ssl.SSLSocket) -> x509.Certificate:
    return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")


def _await_answer(target: ProbeTarget, tls: ssl.SSLSocket) -> None:
    """Wait for the first byte: only then has the peer looked at our certificate (TLS 1.3)."""
    try:
        if tls.recv(1):
            return
        why = "it ends the connection"
    except TimeoutError:
        raise
    except OSError as error:
        why = _reason(error)
    raise Unreachable(
        f"{target.address} refuses this node's certificate {target.identity.files.certificate} ({why}): it"
        " trusts another authority, or the certificate is out of date by its clock; compare the two"
        " authority.crt with `cairn identity`, and have this node's certificate signed again"
    )


def _distrusted(target: ProbeTarget, error: ssl.SSLCertVerificationError) -> str:
    """What is wrong with the certificate there, which is fetched once more to be looked at."""
    try:
        shown = _shown_by(target)
    except (OSError, ValueError, Unreachable):
        return f"the certificate at {target.address} is not trusted: {error.verify_message}"
    if error.verify_code in _OTHER_HOST:
        return _other_host(target.address, target.host, shown)
    return _untrusted(target.address, target.trust, shown, datetime.now(UTC))


def _other_host(address: str, host: str, shown: x509.Certificate) -> str:
    """The sentence for a trusted certificate of other host names."""
    hosts = ", ".join(hosts_named_in(shown)) or "(none)"
    return (
        f"the certificate at {address} holds the names {hosts} and not {host}: dial one of them,"
        f" or have it signed again with `cairn sign --host {host}`"
    )


def _untrusted(address: str, trust: PeerTrust, shown: x509.Certificate, now: datetime) -> str:
    """The sentence for a certificate that is out of date, or is not the one that is trusted."""
    begin, end = shown.not_valid_before_utc, shown.not_valid_after_utc
    if not begin <= now <= end:
        return (
            f"the certificate at {address} is valid from {begin:%Y-%m-%d %H:%M} to"
            f" {end:%Y-%m-%d %H:%M} UTC: whoever runs that node renews it, or a clock is wrong"
        )
    found = f"{_named(shown)}, {fingerprint(shown.public_bytes(Encoding.DER))}"
    if trust.is_pinned:
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


def _shown_by(target: ProbeTarget) -> x509.Certificate:
    """The certificate that is shown there, trusted or not; ours is not shown, and nothing is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        _connect(target) as connection,
        context.wrap_socket(connection, server_hostname=target.host) as tls,
    ):
        return _certificate(tls)


def _reason(error: OSError) -> str:
    reason: str | None = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return (reason or str(error)).replace("_", " ").lower()
