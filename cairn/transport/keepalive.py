"""How both ends of a connection notice that the other is frozen or gone."""

from cairn.runtime.timeouts import CALL_SECONDS, IDLE_SECONDS

CALL_MS = 1000 * CALL_SECONDS
IDLE_MS = 1000 * IDLE_SECONDS
# A frozen peer is noticed by a ping: at the dialling side after 20 seconds of silence and 10 of waiting.
KEEPALIVE = [
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_timeout_ms", CALL_MS),
    # Without it a frozen peer is noticed after a minute whatever the keepalive says.
    ("grpc.http2.ping_timeout_ms", CALL_MS),
]
