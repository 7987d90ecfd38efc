"""Decides at every call whether its caller may make it: by role, port, certificate and roster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cairn.errors import CallerNotAllowed
from cairn.identity.certified import Certified
from cairn.identity.names import Role
from cairn.runtime.clock import Clock
from cairn.transport.access import is_for_everybody, may_call
from cairn.transport.steps import Call, certified_caller

# Raises CallerNotAllowed, or Unavailable where that is not known.
Admits = Callable[[Certified], None]


def everybody(_caller: Certified) -> None:
    """Admit every node that has the role."""


class Authorization:
    """Lets the nodes of this federation call what `cairn/transport/access.py` allows their role, if `admits` has them.

    Where the port `serves` one role, others may only ask for its health.
    """

    def __init__(self, federation: str, serves: Role | None, admits: Admits, clock: Clock) -> None:
        self._federation = federation
        self._serves = serves
        self._admits = admits
        self._clock = clock

    @contextmanager
    def around(self, call: Call) -> Iterator[None]:
        certificate, method = certified_caller(call.context), call.method
        node = certificate.node
        if node.federation != self._federation:
            raise CallerNotAllowed(
                f"{node} belongs to another federation than this node, which is in {self._federation}"
            )
        if not may_call(node.role, method):
            raise CallerNotAllowed(f"{node} has the role {node.role}, which may not call {method}")
        if self._serves not in {None, node.role} and not is_for_everybody(method):
            raise CallerNotAllowed(
                f"this port is for nodes of the role {self._serves}, not for {node}"
            )
        # The handshake has checked it once; a connection may outlast a certificate.
        certificate.check_end(self._clock.unix_ms())
        self._admits(certificate)
        yield
