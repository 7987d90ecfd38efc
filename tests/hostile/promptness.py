"""Honest calls that are made while somebody attacks, and how long each waits for its answer."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.service.network import SECONDS, Network

# About a second at worst where nothing else runs; the calls of an attack that have a place keep it for 8 or 10.
PROMPT = 6.0
_NOT_YET = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}


def is_healthy(network: Network, who: str, address: str) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(network.channel(who, address))
    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS, wait_for_ready=True)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def is_served(network: Network, who: str, address: str) -> bool:
    """Whether the node answers this caller, and neither refuses it nor its connection."""
    try:
        return is_healthy(network, who, address)
    except grpc.RpcError as error:
        if error.code() not in _NOT_YET:
            raise
        return False


@contextmanager
def prompt(*calls: Callable[[], object]) -> Iterator[None]:
    """While what is inside lasts these calls are made in turn, and each must be answered promptly."""
    over = threading.Event()

    def slowest() -> float:
        waits = [0.0]
        while not over.is_set():
            for call in calls:
                begun = time.monotonic()
                call()
                waits.append(time.monotonic() - begun)
            over.wait(0.05)
        return max(waits)

    with ThreadPoolExecutor(1) as pool:
        measured = pool.submit(slowest)
        try:
            yield
        finally:
            over.set()
        assert measured.result() < PROMPT
