"""A channel that another thread has closed."""

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cairn.errors import WrongState
from cairn.transport.channel import ReloadingChannel


def closed_channel() -> ReloadingChannel:
    channel = ReloadingChannel(
        lambda: "credentials", lambda _: grpc.insecure_channel("localhost:1")
    )
    with channel.line():  # there is a connection to close
        pass
    channel.close()
    return channel


@pytest.mark.parametrize("way", ["__call__", "with_call", "future"])
def test_a_call_on_a_channel_that_was_closed_meanwhile_is_one_of_our_errors(way: str) -> None:
    stub: Any = health_pb2_grpc.HealthStub(closed_channel())
    with pytest.raises(WrongState, match="this node has hung up"):
        getattr(stub.Check, way)(health_pb2.HealthCheckRequest(), timeout=1)


def test_so_is_a_stream() -> None:
    stub: Any = health_pb2_grpc.HealthStub(closed_channel())
    with pytest.raises(WrongState, match="this node has hung up"):
        stub.Watch(health_pb2.HealthCheckRequest(), timeout=1)
