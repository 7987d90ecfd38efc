"""A caller calls over a few connections at a time, and a port that fills up keeps those that are in use."""

import os
import socket
from contextlib import ExitStack

import pytest

from cairn.errors import LimitExceeded
from cairn.identity.names import NodeName, Role
from cairn.runtime.clock import Clock
from cairn.transport import connections as module
from cairn.transport.connections import CONNECTIONS_OF_ONE_CALLER, Connections, Reserve

ALICE, BOB = (NodeName("ward", Role.OWNER, name) for name in ("alice", "bob"))
PEERS = [f"ipv4:192.0.2.1:{port}" for port in range(CONNECTIONS_OF_ONE_CALLER + 1)]


class SetClock(Clock):
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def connections(clock: SetClock) -> Connections:
    return Connections(clock)


def test_one_connection_too_many_of_a_caller_is_refused(connections: Connections) -> None:
    for peer in PEERS[:-1]:
        connections.enter(ALICE, peer)
    with pytest.raises(LimitExceeded, match=r"alice .* has 8 connections already"):
        connections.enter(ALICE, PEERS[-1])
    connections.enter(ALICE, PEERS[0])  # another call on one that it has
    connections.enter(BOB, PEERS[-1])


def test_a_connection_that_was_not_used_for_a_moment_makes_room(
    connections: Connections, clock: SetClock
) -> None:
    for peer in PEERS[:-1]:
        connections.enter(ALICE, peer)
        connections.leave(ALICE, peer)
    with pytest.raises(LimitExceeded):
        connections.enter(ALICE, PEERS[-1])
    clock.now = 1.1
    connections.enter(ALICE, PEERS[-1])


def test_a_long_call_keeps_its_connection_in_use(connections: Connections, clock: SetClock) -> None:
    connections.enter(ALICE, "ipv4:192.0.2.1:40000")
    connections.enter(BOB, "ipv6:%5B2001:db8::1%5D:40000")
    connections.leave(BOB, "ipv6:%5B2001:db8::1%5D:40000")
    assert connections.in_use() == {("192.0.2.1", 40000), ("2001:db8::1", 40000)}
    clock.now = 100.0
    assert connections.in_use() == {("192.0.2.1", 40000)}
    connections.leave(ALICE, "ipv4:192.0.2.1:40000")
    connections.enter(BOB, "unknown")  # it is gone already
    connections.leave(BOB, "unknown")
    assert len(connections.in_use()) == 2
    clock.now = 200.0
    assert connections.in_use() == set()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_fills_up_shuts_down_what_is_not_in_use_and_nothing_else(host: str) -> None:
    """Also not a connection to another port, nor one that it has dialled itself."""
    clock = Clock()
    connections = Connections(clock)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        ports = [
            stack.enter_context(socket.create_server((host, 0), family=family)) for _ in range(2)
        ]
        ends = [
            (stack.enter_context(socket.create_connection(port.getsockname()[:2])), port)
            for port in (ports[0], ports[0], ports[0], ports[1])
        ]
        for _, port in ends:
            stack.enter_context(port.accept()[0])
        used = ends[0][0].getsockname()
        connections.enter(
            ALICE, f"{'ipv6:%5B::1%5D' if family == socket.AF_INET6 else 'ipv4:' + host}:{used[1]}"
        )
        reserve = Reserve(connections, 4, clock)
        reserve.start(ports[0].getsockname()[1])
        try:
            for end, _ in ends[1:3]:
                end.settimeout(60)
                assert end.recv(1) == b""
            for end in (ends[0][0], ends[3][0]):
                end.setblocking(False)
                with pytest.raises(BlockingIOError):
                    end.recv(1)
        finally:
            reserve.stop()


def test_a_descriptor_that_is_reused_between_the_look_and_the_end_ends_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gRPC closes descriptors in its own threads, and the next connection gets the number that became free."""
    with ExitStack() as stack:
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ends = [stack.enter_context(socket.create_connection(port.getsockname())) for _ in range(2)]
        idle, honest = (stack.enter_context(port.accept()[0]) for _ in range(2))

        def looked_at(host: str) -> str:
            os.dup2(honest.fileno(), idle.fileno())
            return host

        monkeypatch.setattr(module, "_plain", looked_at)
        module._shut_down(idle.fileno(), ends[0].getsockname())
        ends[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            ends[1].recv(1)
