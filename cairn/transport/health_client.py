"""Asks a peer's health, and reads what the answer says beside it."""

from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cairn.transport.health_service import CLOCK_KEY, PROTOCOL_KEY, SOFTWARE_KEY
from cairn.transport.status import translated


@dataclass(frozen=True)
class Health:
    """A peer's answer. `protocol` and `unix_ms` are None where an older release of Cairn does not say them."""

    serving: bool
    protocol: int | None
    software: str
    unix_ms: int | None


def ask_health(channel: grpc.Channel, timeout_seconds: float) -> Health:
    """Ask the peer's health service. Raises Unavailable where it cannot be reached."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    with translated():
        answer, call = stub.Check.with_call(
            health_pb2.HealthCheckRequest(), timeout=timeout_seconds
        )
    said = {key: value for key, value in call.trailing_metadata() or () if isinstance(value, str)}
    return Health(
        serving=bool(answer.status == health_pb2.HealthCheckResponse.SERVING),
        protocol=_number(said.get(PROTOCOL_KEY, "")),
        software=said.get(SOFTWARE_KEY, ""),
        unix_ms=_number(said.get(CLOCK_KEY, "")),
    )


def is_serving(channel: grpc.Channel, timeout_seconds: float) -> bool:
    """Ask the peer's health service. Raises Unavailable where it cannot be reached."""
    return ask_health(channel, timeout_seconds).serving


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None  # noqa: PLR2004 - of 64 bits
