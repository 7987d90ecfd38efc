"""Answers whether this node can do its work. Each answer says beside it which Cairn this is, and what time it has.

That is in the answer's trailing metadata, so the messages are those of `grpc.health.v1` and no other: who
does not know these keys does not look at them.

    cairn-protocol   the version of the protocol, as a number
    cairn-software   the version of Cairn
    cairn-unix-ms    this machine's clock, in milliseconds since 1970, UTC
"""

from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from cairn import __version__
from cairn.protocol.messages import PROTOCOL
from cairn.runtime.clock import Clock

PROTOCOL_KEY = "cairn-protocol"
SOFTWARE_KEY = "cairn-software"
CLOCK_KEY = "cairn-unix-ms"


class HealthService(health.HealthServicer):
    """The standard health service of one server: NOT_SERVING also while `can_work` says no."""

    def __init__(
        self, can_work: Callable[[], bool] = lambda: True, clock: Clock | None = None
    ) -> None:
        super().__init__()
        self._can_work = can_work
        self._clock = clock or Clock()

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's name
        context.set_trailing_metadata(
            (
                (PROTOCOL_KEY, str(PROTOCOL)),
                (SOFTWARE_KEY, __version__),
                (CLOCK_KEY, str(self._clock.unix_ms())),
            )
        )
        if not self._can_work():
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        return super().Check(request, context)
