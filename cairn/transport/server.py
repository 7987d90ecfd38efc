"""The one transport kit: listening and dialling over mTLS, and the errors that come back.

The listening side maps our errors to statuses (cairn/transport/error_mapping.py) and the dialling side maps them back
here, so that both ends speak of the same errors.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cairn.errors import CairnError, CallerNotAllowed
from cairn.identity.credentials import Identity, PinnedAggregator, Role
from cairn.identity.reload import Renewal, renewal_of, renewal_of_pin
from cairn.protocol.limits import MAX_JOB_SPEC_BYTES, MAX_ROUND_SECONDS
from cairn.protocol.messages import reason_of_word
from cairn.runtime.clock import Clock
from cairn.runtime.quoting import quoted
from cairn.runtime.timeouts import CALL_SECONDS, IDLE_SECONDS
from cairn.transport.authorization import Admits, Authorization, everybody
from cairn.transport.call_deadline import CallDeadline, PeerTimeout
from cairn.transport.channel import RedialledChannel
from cairn.transport.connections import Connections, Reserve
from cairn.transport.error_mapping import ErrorMapping, Refused, unrecorded
from cairn.transport.health_service import HealthService
from cairn.transport.interceptor import Interceptor
from cairn.transport.parsing import MESSAGE_BYTES
from cairn.transport.pools import Pools
from cairn.transport.ports import why_not
from cairn.transport.quota import Quotas
from cairn.transport.status import STATUS
from cairn.transport.steps import Step
from cairn.transport.trouble import connection_trouble
from cairn.transport.watchdog import Watchdog

# A job's specification, and what it comes with.
JOB_MESSAGE_BYTES = MAX_JOB_SPEC_BYTES + MESSAGE_BYTES

_BY_NAME = {kind.__name__: kind for kind in STATUS}
# Where no node has answered. INTERNAL is a failure in a node's code, which another call meets again;
# RESOURCE_EXHAUSTED without a node's word is a message that is too large to be received.
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,  # gRPC's own, for a stream whose connection is gone
}

_CALL_MS = 1000 * CALL_SECONDS
_IDLE_MS = 1000 * IDLE_SECONDS
_NEW_CONNECTION_EVERY_MS = 600_000
# A connection without a call for so long is ended: whoever comes back connects again, and nobody holds many.
# gRPC also keeps the last 8 KiB that a connection brought, which may be the end of an update, until it ends.
_PAUSE_SECONDS = 1

# A frozen peer is noticed by a ping: at the dialling side after 20 seconds of silence and 10 of waiting.
_KEEPALIVE = [
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_timeout_ms", _CALL_MS),
    # Without it a frozen peer is noticed after a minute whatever the keepalive says.
    ("grpc.http2.ping_timeout_ms", _CALL_MS),
]
_LISTENING = [
    *_KEEPALIVE,
    ("grpc.keepalive_time_ms", _IDLE_MS),
    # No ping is held against a peer: where that does not read, gRPC would join all complaints into one ever longer
    # text, again at each ping, which took a third of a second of CPU for 12,000 of them.
    ("grpc.http2.max_ping_strikes", 0),
    # Else a second process may bind the same port and take half the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", _CALL_MS),
    ("grpc.max_connection_idle_ms", 1000 * _PAUSE_SECONDS),
    ("grpc.max_concurrent_streams", 16),  # more than one node may have under way at a time
    # So that certificates are looked at again; a call that is under way may end, and has its own deadline.
    ("grpc.max_connection_age_ms", _NEW_CONNECTION_EVERY_MS),
    ("grpc.max_connection_age_grace_ms", 1000 * MAX_ROUND_SECONDS),
]
_DIALLING = [
    *_KEEPALIVE,
    ("grpc.keepalive_time_ms", _IDLE_MS - _CALL_MS),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", _CALL_MS),  # how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),  # a call is repeated by the code that knows whether it may be
    ("grpc.max_receive_message_length", JOB_MESSAGE_BYTES),
]


class Listener:
    """A gRPC server on one address with the guard, the health service and two pools."""

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
            _served(identity), _fetcher(renewal_of(identity), identity), True
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
    return [("grpc.max_allowed_incoming_connections", connections)]


def _window(nbytes: int) -> list[tuple[str, int]]:
    return [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", nbytes)]


def dial(
    address: str,
    identity: Identity,
    pinned: PinnedAggregator | None = None,
    trusted: Callable[[], bytes] | None = None,
) -> grpc.Channel:
    """Open a channel to a node whose certificate is pinned, or else was issued by our own authority.

    `trusted` says, in the place of a pin, which certificates are accepted at present; what it raises is
    raised by the call. When the files of the identity or of the pin change, or what is trusted, the next
    call dials again with what they hold.
    """
    own = renewal_of(identity)
    pin = renewal_of_pin(pinned) if pinned is not None else None

    def present() -> tuple[Identity, bytes]:
        current = own.current()
        if trusted is not None:
            return current, trusted()
        return current, current.authority if pin is None else pin.current().certificates

    def connect(credentials: tuple[Identity, bytes]) -> grpc.Channel:
        current, trusted = credentials
        secrets = grpc.ssl_channel_credentials(trusted, current.key, current.certificate)
        return grpc.secure_channel(address, secrets, options=_DIALLING)

    return RedialledChannel(present, connect)


def _served(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.certificate)], identity.authority
    )


def _fetcher(renewal: Renewal[Identity], served: Identity) -> Callable[[], Any]:
    """What gRPC asks at each handshake: what to serve from now on, or None for the same as before."""

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        current = renewal.current()
        if current == served:
            return None
        served = current
        return _served(current)

    return fetch


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
