"""Which gRPC status each of our errors travels as, and which error the caller makes of it again.

gRPC reports every connection that does not come about as UNAVAILABLE. Some of these mend themselves, such as
a peer that is being started; others last until somebody changes a file. What it is can be read only off the words
of grpcio, which tests/service/test_strangers.py holds against real listeners.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from cairn import errors
from cairn.errors import CairnError, CallerNotAllowed, PeerUntrusted, Unavailable
from cairn.protocol.words import reason_of_word
from cairn.runtime.quoting import quoted

STATUS: dict[type[CairnError], grpc.StatusCode] = {
    errors.InvalidMessage: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UpdateRefused: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CallerNotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Fenced: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Conflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}
# On the wire, where older peers read it, and in the log an error goes by its class's name, or else by this one.
_WIRE_NAMES: dict[type[CairnError], str] = {errors.LimitExceeded: "TooMuch"}


def wire_name(kind: type[CairnError]) -> str:
    """The word for an error in the trailing metadata `cairn-error`, and in the log."""
    return _WIRE_NAMES.get(kind, kind.__name__)


_BY_WIRE_NAME = {wire_name(kind): kind for kind in STATUS}
# Where no node has answered. INTERNAL is a failure in a node's code, which another call meets again;
# RESOURCE_EXHAUSTED without a node's word is a message that is too large to be received.
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,  # gRPC's own, for a stream whose connection is gone
}

# How a connection that lasts as it is has failed, and what to do about it; the first sign that fits counts.
_LASTING = [
    (
        "Hostname Verification",
        (
            "the peer's certificate does not hold the host name that this node dials: dial a name that it holds, or"
            " have it signed again with that name"
        ),
    ),
    (
        "CERTIFICATE_VERIFY_FAILED: (?P<why>certificate has expired|certificate is not yet valid)(:|$)",
        "the peer's certificate is out of date ({why}): whoever runs that node renews it, or a clock is wrong",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED(: (?P<why>[^:]+))?",
        (
            "the peer's certificate is not the one that this node trusts ({why}): it is of another federation, or was"
            " renewed; ask whoever runs that node for its present one, or correct the address"
        ),
    ),
    (  # the peer's first bytes are those of no handshake, or of one that cannot be ours
        "WRONG_VERSION_NUMBER|HTTP_REQUEST|UNEXPECTED_MESSAGE|TLSV1_ALERT",
        "what listens there does not speak TLS, so it is no node of a federation: correct the address",
    ),
    (
        "missing selected ALPN|Failed parsing HTTP/2",
        "what listens there speaks TLS but not gRPC, so it is no node of a federation: correct the address",
    ),
    (  # after the handshake, in which it has shown a certificate that we trust, and before it has said a word
        r"failed to connect to all addresses; last error: \w+: [^ ]+: (Socket closed|recvmsg:)",
        (
            "the peer ends the connection when it has seen this node's certificate: it trusts another authority, or"
            " the certificate is out of date; have it signed again by the authority that the peer trusts"
        ),
    ),
]


@contextmanager
def translated() -> Iterator[None]:
    """Turn the gRPC errors of the calls made inside into ours."""
    try:
        yield
    except grpc.RpcError as error:
        raise _from_status(error) from None


def _from_status(error: Any) -> CairnError:
    metadata = dict(error.trailing_metadata() or ())
    kind = _BY_WIRE_NAME.get(str(metadata.get("cairn-error", "")))
    text = quoted(error.details() or error.code().name)
    if kind is not None:
        return kind(text, reason_of_word(str(metadata.get("cairn-reason", ""))))
    if error.code() in _PASSING:
        return _connection_trouble(text)
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return CallerNotAllowed(
            "the peer does not serve what this node asks for: the address leads to another node or to"
            " another of its ports, or the two have different versions; `cairn doctor` with this node's"
            f" file compares them ({text})"
        )
    return CairnError(f"{error.code().name}: {text}")


def _connection_trouble(text: str) -> Unavailable:
    """The error for a connection that failed with these details of gRPC's; PeerUntrusted where it lasts."""
    for sign, sentence in _LASTING:
        if found := re.search(sign, text):
            why = found.groupdict().get("why") or "it cannot be verified"
            doctor = "`cairn doctor` with this node's file shows what differs"
            return PeerUntrusted(f"{sentence.format(why=why)}; {doctor}")
    if "Connection refused" in text:
        return Unavailable("nothing listens there (connection refused)")
    if "andshake" in text:
        return Unavailable(f"the peer ended the connection before it said who it is: {text}")
    return Unavailable(text)
