"""Which gRPC status each of our errors travels as, and which error the caller makes of it again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from cairn import errors
from cairn.errors import CairnError, CallerNotAllowed
from cairn.protocol.messages import reason_of_word
from cairn.runtime.quoting import quoted
from cairn.transport.trouble import connection_trouble

STATUS: dict[type[CairnError], grpc.StatusCode] = {
    errors.InvalidMessage: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UpdateRefused: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CallerNotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Fenced: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Conflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.TooMuch: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}
_BY_NAME = {kind.__name__: kind for kind in STATUS}
# Where no node has answered. INTERNAL is a failure in a node's code, which another call meets again;
# RESOURCE_EXHAUSTED without a node's word is a message that is too large to be received.
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,  # gRPC's own, for a stream whose connection is gone
}


@contextmanager
def translated() -> Iterator[None]:
    """Turn the gRPC errors of the calls made inside into ours."""
    try:
        yield
    except grpc.RpcError as error:
        raise _from_status(error) from None


def _from_status(error: Any) -> CairnError:
    metadata = dict(error.trailing_metadata() or ())
    kind = _BY_NAME.get(str(metadata.get("cairn-error", "")))
    text = quoted(error.details() or error.code().name)
    if kind is not None:
        return kind(text, reason_of_word(str(metadata.get("cairn-reason", ""))))
    if error.code() in _PASSING:
        return connection_trouble(text)
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return CallerNotAllowed(
            "the peer does not serve what this node asks for: the address leads to another node or to"
            " another of its ports, or the two have different versions; `cairn doctor` with this node's"
            f" file compares them ({text})"
        )
    return CairnError(f"{error.code().name}: {text}")
