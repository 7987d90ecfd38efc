"""What stands around every handler, step by step: who may call, how much, for how long, and how a refusal looks.

gRPC-Python checks no role at the handshake and shows no peer to its interceptors, so the steps are taken in the
handler's thread, before its request is waited for. `Server` lists them.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, cast

import grpc

from cairn.identity.certified import Certified, certified
from cairn.identity.names import NodeName
from cairn.transport.watchdog import Watch


@dataclass
class Call:
    """One call under way. Nothing that outlives it may refer to it: gRPC counts its stream until it is gone."""

    method: str
    context: grpc.ServicerContext
    watch: Watch | None = None
    _node: NodeName | None = None

    @property
    def node(self) -> NodeName:
        """Who calls, by the certificate of the connection. Raises CallerNotAllowed for a name that is none.

        Asked first while the call is under way: a context says nothing of one that has ended.
        """
        if self._node is None:
            self._node = caller(self.context)
        return self._node


class Step(Protocol):
    """Goes around a call: what stands before its `yield` is done before the next step, and the rest after it."""

    def around(self, call: Call) -> AbstractContextManager[object]:
        """Raises a CairnError to refuse the call."""


def caller(context: grpc.ServicerContext) -> NodeName:
    """Who calls, by the certificate of the connection."""
    return certified_caller(context).node


def certified_caller(context: grpc.ServicerContext) -> Certified:
    """What the certificate of the connection says."""
    return certified(cast("bytes", context.auth_context()["x509_pem_cert"][0]))
