"""Why an address cannot be listened on, told by trying."""

import errno
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from cairn.address import Address
from cairn.errors import UsageError

_CHANGE = "change the address in this node's file"
_WHY = {
    errno.EADDRINUSE: f"another process has the port; stop it, or {_CHANGE}",
    errno.EADDRNOTAVAIL: f"the address is not this machine's; {_CHANGE}",
    errno.EACCES: f"this account may not listen on that port; take one above 1023: {_CHANGE}",
}


def cannot_listen(address: str, error: OSError | None) -> UsageError:
    """The sentence for an address that cannot be bound."""
    if isinstance(error, socket.gaierror):
        why = f"the name does not resolve ({error.strerror}); {_CHANGE}"
    elif error is None:
        why = f"another process has the port, or the address is not this machine's; {_CHANGE}"
    else:
        why = _WHY.get(error.errno or 0, f"{error.strerror}; {_CHANGE}")
    return UsageError(f"cannot listen on {address}: {why}")


def why_not(address: str) -> UsageError:
    """The reason why an address could not be bound just now, as far as trying it again tells."""
    return next((error for _, error in tried([address]) if error), cannot_listen(address, None))


def tried(addresses: Iterable[str]) -> list[tuple[str, UsageError | None]]:
    """Bind each address, beside the others, and let go of all; says what is wrong with each, if anything."""
    with ExitStack() as held:
        return [(address, _tried(address, held)) for address in addresses]


def _tried(address: str, held: ExitStack) -> UsageError | None:
    """A name may stand for several addresses: one that is taken is one too many, else one is enough."""
    try:
        found = _addresses(address)
    except OSError as error:
        return cannot_listen(address, error)
    troubles = []
    for family, where in found:
        try:
            held.enter_context(_bound(family, where))
        except OSError as error:
            troubles.append(error)
    taken = [trouble for trouble in troubles if trouble.errno == errno.EADDRINUSE]
    if taken or len(troubles) == len(found):
        return cannot_listen(address, (taken or troubles)[0])
    return None


def _addresses(address: str) -> list[tuple[int, Any]]:
    parts = Address.parse(address)
    found = socket.getaddrinfo(parts.host, parts.port, type=socket.SOCK_STREAM)
    return [(family, where) for family, _, _, _, where in found]


def _bound(family: int, where: Any) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # As gRPC does: what a node that has just stopped left behind is in nobody's way.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
        bound.listen(1)
    except OSError:
        bound.close()
        raise
    return bound
