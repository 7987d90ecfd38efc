"""What a failed connection means, by the words that gRPC has for it, and what to do about it. Pure.

gRPC reports every connection that does not come about as UNAVAILABLE. Some of these mend themselves, such as
a peer that is being started; others last until somebody changes a file. The words are those of grpcio, and
tests/service/test_strangers.py holds them against real listeners.
"""

import re

from cairn.errors import PeerUntrusted, Unavailable

_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED(?:: (?P<why>[^:]+))?")
_OUT_OF_DATE = {"certificate has expired", "certificate is not yet valid"}
# The peer's first bytes are those of no handshake, or of one that cannot be ours.
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "TLSV1_ALERT")
_NO_GRPC = ("missing selected ALPN", "Failed parsing HTTP/2")
# After the handshake, in which it has shown a certificate that we trust, and before it has said a word.
_HUNG_UP = re.compile(
    r"failed to connect to all addresses; last error: \w+: [^ ]+: (Socket closed|recvmsg:)"
)
_DOCTOR = "`cairn doctor` with this node's file shows what differs"


def connection_trouble(text: str) -> Unavailable:
    """The error for a connection that failed with these details of gRPC's; PeerUntrusted where it lasts."""
    untrusted = _UNTRUSTED.search(text)
    if "Hostname Verification" in text:
        return PeerUntrusted(
            "the peer's certificate does not hold the host name that this node dials: dial a name that it"
            f" holds, or have it signed again with that name; {_DOCTOR}"
        )
    if untrusted is not None:
        return PeerUntrusted(_untrusted(untrusted["why"] or "it cannot be verified"))
    if any(sign in text for sign in _NO_TLS):
        return PeerUntrusted(
            "what listens there does not speak TLS, so it is no node of a federation: correct the"
            f" address; {_DOCTOR}"
        )
    if any(sign in text for sign in _NO_GRPC):
        return PeerUntrusted(
            "what listens there speaks TLS but not gRPC, so it is no node of a federation: correct the"
            f" address; {_DOCTOR}"
        )
    if _HUNG_UP.search(text):
        return PeerUntrusted(
            "the peer ends the connection when it has seen this node's certificate: it trusts another"
            " authority, or the certificate is out of date; have it signed again by the authority that the"
            f" peer trusts; {_DOCTOR}"
        )
    if "Connection refused" in text:
        return Unavailable("nothing listens there (connection refused)")
    if "andshake" in text:
        return Unavailable(f"the peer ended the connection before it said who it is: {text}")
    return Unavailable(text)


def _untrusted(why: str) -> str:
    if why in _OUT_OF_DATE:
        return (
            f"the peer's certificate is out of date ({why}): whoever runs that node renews it, or a clock"
            f" is wrong; {_DOCTOR}"
        )
    return (
        f"the peer's certificate is not the one that this node trusts ({why}): it is of another"
        " federation, or was renewed; ask whoever runs that node for its present one, or correct the"
        f" address; {_DOCTOR}"
    )
