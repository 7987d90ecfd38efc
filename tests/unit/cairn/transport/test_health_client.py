"""What an answer about health says: of this release, of an older one, and of one that lies."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cairn.protocol.messages import PROTOCOL
from cairn.transport.channel import dial
from cairn.transport.health_client import Health, ask_health
from tests.service.door import AGGREGATOR, ALICE, SECONDS, Door, Ward
from tests.unit.cairn.cli.examination import Says


@contextmanager
def answered_by(service: health.HealthServicer) -> Iterator[grpc.Channel]:
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    service.set("", health_pb2.HealthCheckResponse.SERVING)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        server.stop(0).wait()


def test_a_node_says_its_version_and_its_time_with_its_health(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    aggregator, alice = ward.home(AGGREGATOR), ward.home(ALICE)
    with Door(aggregator) as door, dial(door.address, alice.identity()) as channel:
        before = time.time_ns() // 1_000_000
        answer = ask_health(channel, SECONDS)
        after = time.time_ns() // 1_000_000
    assert answer.serving
    assert answer.protocol == PROTOCOL
    assert answer.software == version("cairn")
    assert answer.unix_ms is not None
    assert before <= answer.unix_ms <= after


def test_an_older_release_that_says_neither_is_understood() -> None:
    with answered_by(health.HealthServicer()) as channel:
        expected = Health(serving=True, protocol=None, software="", unix_ms=None)
        assert ask_health(channel, SECONDS) == expected


@pytest.mark.parametrize("text", ["", "two", "-1", "1e9", "0x2", "9" * 100])
def test_what_is_no_number_is_not_said(text: str) -> None:
    with answered_by(Says(("cairn-protocol", text), ("cairn-unix-ms", text))) as channel:
        answer = ask_health(channel, SECONDS)
    assert answer.protocol is None
    assert answer.unix_ms is None
