"""Who holds connections: a certificate on no roster cannot hold all, and an owner only a few."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import grpc
import pytest

from tests.hostile.http2 import Connection, Crowd, trust
from tests.hostile.owners import joined_round
from tests.scenarios.processes import until
from tests.service.network import Network, OpenRound

OPEN_FILES = 384  # of which 128 may be connections to each port
HALF = 64
HELD = 300
HEALTH = "/grpc.health.v1.Health/Check"
LIMIT = (
    "import os, resource, sys\n"
    f"resource.setrlimit(resource.RLIMIT_NOFILE, ({OPEN_FILES}, {OPEN_FILES}))\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    directory = tmp_path_factory.mktemp("few-files")
    network = Network(directory, (sys.executable, "-c", LIMIT), floor=3, lease_seconds=600)
    yield network
    network.stop()


@contextmanager
def calling(connections: list[Connection]) -> Iterator[None]:
    """Call over each connection again and again, so that none is idle."""
    over = threading.Event()

    def call() -> None:
        while not over.wait(0.4):
            for connection in connections:
                if not connection.closed:
                    connection.call(HEALTH, b"")

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield
    finally:
        over.set()
        caller.join()


def joins(opened: OpenRound) -> Callable[[], bool]:
    def join() -> bool:
        with suppress(grpc.RpcError):
            opened.join("bob")
            return True
        return False

    return join


@pytest.mark.parametrize("who", ["mallory", "alice"])
def test_one_certificate_that_holds_all_the_connections_it_can_get_keeps_no_owner_out(
    network: Network, who: str
) -> None:
    opened = joined_round(network)
    network.hang_up("bob")
    tls = trust(network.root, network.credentials[who])
    with Crowd() as crowd:
        held: list[Connection] = []
        with calling(held):
            for _ in range(HELD // 10):
                more = crowd.connect(10, network.intake_at, tls)
                for connection in more:
                    connection.call(HEALTH, b"")
                crowd.keep(more)
                held += more
            until(joins(opened), "bob joins over a new connection")
            until(
                lambda: sum(not connection.closed for connection in held) <= HALF,
                "at most half of the port's connections are left",
            )
    opened.abort()
