"""Pings whose answers nobody reads: they cost a node no more than reading them, on any port."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.hostile.checks import bounded
from tests.hostile.http2 import Connection, trust
from tests.hostile.owners import an_aggregator, joined_round
from tests.hostile.promptness import is_healthy, prompt
from tests.scenarios.processes import until
from tests.service.network import Network

CONNECTIONS = 60
PINGS = 12_000  # in 204 KB, which a connection's buffers take at once
MOST_CPU_SECONDS = 3.0  # of the node; it was 8 and more while pings were held against a peer


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    yield from an_aggregator(tmp_path_factory)


def cpu_seconds(pid: int) -> float:
    """The processor time that a process has used until now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sockets(pid: int) -> int:
    """How many sockets a process has open."""
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            count += str(entry.readlink()).startswith("socket:")
    return count


@pytest.mark.parametrize("port", ["owners", "coordinators"])
def test_pings_of_a_stranger_that_reads_no_answer_keep_nobody_waiting(
    network: Network, port: str
) -> None:
    address = network.intake_at if port == "owners" else network.release_at
    tls = trust(network.root, network.credentials["mallory"])
    opened = joined_round(network)
    before = cpu_seconds(network.node.pid)
    with (
        bounded(network.node.pid, 64 << 20),
        prompt(
            lambda: is_healthy(network, "rival", network.release_at), lambda: opened.join("bob")
        ),
    ):
        held = [Connection(address, tls) for _ in range(CONNECTIONS)]
        senders = [threading.Thread(target=each.ping, args=(PINGS,)) for each in held]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        until(lambda: sockets(network.node.pid) < CONNECTIONS, "the node ends the connections")
    used = cpu_seconds(network.node.pid) - before
    for each in held:
        each.socket.close()
    opened.abort()
    assert used < MOST_CPU_SECONDS
