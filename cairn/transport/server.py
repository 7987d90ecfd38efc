"""Listening over mTLS: a server with the steps around every handler, the health service and two pools of threads."""

from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cairn.identity.credentials import Identity
from cairn.identity.names import Role
from cairn.identity.reload import Reloading, reloading_identity
from cairn.protocol.limits import MAX_ROUND_SECONDS
from cairn.runtime.clock import Clock
from cairn.transport.authorization import Admits, Authorization, everybody
from cairn.transport.call_deadline import CallDeadline, PeerTimeout
from cairn.transport.connections import Connections, Reserve
from cairn.transport.error_mapping import ErrorMapping, Refused, unrecorded
from cairn.transport.health_service import HealthService
from cairn.transport.interceptor import Interceptor
from cairn.transport.keepalive import CALL_MS, IDLE_MS, KEEPALIVE
from cairn.transport.parsing import MESSAGE_BYTES
from cairn.transport.pools import Pools
from cairn.transport.ports import why_not
from cairn.transport.quota import Quotas
from cairn.transport.steps import Step
from cairn.transport.watchdog import Watchdog

_NEW_CONNECTION_EVERY_MS = 600_000
# A connection without a call for so long is ended: whoever comes back connects again, and nobody holds many.
# gRPC also keeps the last 8 KiB that a connection brought, which may be the end of an update, until it ends.
_PAUSE_SECONDS = 1
_STREAMS = 16  # of a connection: more than one node may have under way at a time

_LISTENING = [
    *KEEPALIVE,
    ("grpc.keepalive_time_ms", IDLE_MS),
    # No ping is held against a peer: where that does not read, gRPC would join all complaints into one ever longer
    # text, again at each ping, which took a third of a second of CPU for 12,000 of them.
    ("grpc.http2.max_ping_strikes", 0),
    # Else a second process may bind the same port and take half the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", CALL_MS),
    ("grpc.max_connection_idle_ms", 1000 * _PAUSE_SECONDS),
    ("grpc.max_concurrent_streams", _STREAMS),
    # So that certificates are looked at again; a call that is under way may end, and has its own deadline.
    ("grpc.max_connection_age_ms", _NEW_CONNECTION_EVERY_MS),
    ("grpc.max_connection_age_grace_ms", 1000 * MAX_ROUND_SECONDS),
]


class Server:
    """A gRPC server on one address with the steps, the health service and two pools of threads."""

    def __init__(
        self,
        identity: Identity,
        *,
        long_callers: int,
        callers: int | None = None,
        message_bytes: int = MESSAGE_BYTES,
        connections: int | None = None,
        window_bytes: int | None = None,
        serves: Role | None = None,
        admits: Admits = everybody,
        refused: Refused = unrecorded,
        can_work: Callable[[], bool] = lambda: True,
    ) -> None:
        """Prepare to listen, under the identity that is in its files whenever somebody connects.

        `long_callers` is how many nodes may have streams under way, and `callers` how many may have other
        calls, by default as many. At most so many `connections` are taken, half of them only from callers
        that are admitted; without a number, as many as gRPC takes. `message_bytes` is the largest single
        message to accept. Of a stream that is not read yet at most `window_bytes` come in; by default gRPC
        lets that grow with the connection. All but the health is for nodes of the role `serves`, where one
        is given. `admits` is asked about the caller's certificate at every call, and raises CallerNotAllowed;
        `refused` is told of every refusal, once: the caller where it is known, the method, the error. `can_work` is asked
        for the node's health.
        """
        self._pools = Pools(callers or long_callers, long_callers)
        clock = Clock()
        used = Connections(clock)
        self._reserve = Reserve(used, connections, clock) if connections else None
        self._watchdog = Watchdog(clock)
        errors = ErrorMapping(refused)
        # Each stands around those below it. All are taken before a request is waited for and parsed.
        steps: list[Step] = [
            errors,
            Authorization(identity.node.federation, serves, admits, clock),
            CallDeadline(),
            Quotas(self._pools, used),
            PeerTimeout(self._watchdog, errors.record),
        ]
        self._grpc = grpc.server(
            self._pools.short,
            interceptors=[Interceptor(steps, self._pools.long)],
            options=[
                *_LISTENING,
                ("grpc.max_receive_message_length", message_bytes),
                *(_taking(connections) if connections else []),
                *(_window(window_bytes) if window_bytes else []),
            ],
        )
        self._credentials = grpc.dynamic_ssl_server_credentials(
            _served(identity), _fetcher(reloading_identity(identity), identity), True
        )
        self._health = HealthService(can_work)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)

    def add(self, register: Callable[[Any, grpc.Server], None], service: object) -> None:
        """Add a service by its generated `add_…Servicer_to_server` function."""
        register(service, self._grpc)

    def start(self, address: str) -> int:
        """Bind, serve and return the port. Raises UsageError where the address cannot be bound."""
        try:
            port = self._grpc.add_secure_port(address, self._credentials)
        except RuntimeError:
            raise why_not(address) from None
        self._grpc.start()
        if self._reserve:
            self._reserve.start(port)
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        return port

    def stop(self, grace_seconds: float) -> None:
        """Refuse new calls, give those under way `grace_seconds`, and end them."""
        self._health.enter_graceful_shutdown()
        self._grpc.stop(grace_seconds).wait(grace_seconds + 1)
        self._watchdog.stop()
        if self._reserve:
            self._reserve.stop()
        self._pools.long.shutdown(wait=False, cancel_futures=True)


def _taking(connections: int) -> list[tuple[str, int]]:
    """No more connections, and all calls on them: gRPC would cut off some at random while 1000 wait for Python."""
    most = _STREAMS * connections
    return [
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.server.max_pending_requests", most),
        ("grpc.server.max_pending_requests_hard_limit", most),
    ]


def _window(nbytes: int) -> list[tuple[str, int]]:
    return [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", nbytes)]


def _served(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.certificate)], identity.authority
    )


def _fetcher(renewal: Reloading[Identity], served: Identity) -> Callable[[], Any]:
    """What gRPC asks at each handshake: what to serve from now on, or None for the same as before."""

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        current = renewal.current()
        if current == served:
            return None
        served = current
        return _served(current)

    return fetch
