"""What a coordinator waits for at the aggregator, and for how long."""

import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from cairn.errors import CairnError, Unavailable
from cairn.protocol.limits import MAX_ROUND_SECONDS
from cairn.protocol.messages import digest_of, manifest_to_bytes
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from coordinator.aggregator_client import AggregatorClient, OpenedRound
from tests.unit.owner_node.test_policy import MANIFEST

OPENED = OpenedRound(MANIFEST, digest_of(manifest_to_bytes(MANIFEST)), pb.Signed())
PATIENCE = 30.0


class Hanging:
    """An aggregator that is up and never comes to the end of its round."""

    def __init__(self) -> None:
        self.timeouts: list[float] = []

    def WatchRound(  # noqa: N802 - as the stub has it
        self, _request: object, timeout: float
    ) -> Iterator[aggregator_pb2.WatchRoundResponse]:
        self.timeouts.append(timeout)
        yield aggregator_pb2.WatchRoundResponse(state=aggregator_pb2.ROUND_STATE_SEALED)
        raise Unavailable("Deadline Exceeded")


def client(stub: Hanging) -> AggregatorClient:
    key = Ed25519PrivateKey.generate().public_key()
    with grpc.insecure_channel("localhost:1") as channel:
        made = AggregatorClient(channel, "localhost:1", key, PATIENCE, threading.Event())
    made._stub = cast("Any", stub)
    return made


def test_a_round_whose_end_never_comes_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "cairn.transport.retry.IDLE_SECONDS", -1.0
    )  # every call has lasted for long
    monkeypatch.setattr("coordinator.aggregator_client.IDLE_SECONDS", 0.5)
    monkeypatch.setattr("coordinator.aggregator_client.CALL_SECONDS", 0.25)
    stub = Hanging()
    with pytest.raises(CairnError, match=r"localhost:1 has not ended round 4, .* see its log"):
        client(stub).watch(OPENED, 0.5)
    assert max(stub.timeouts) <= 2.0  # twice the deadline and two idle limits


def test_an_aggregator_that_was_away_for_longer_than_the_round_is_still_asked_how_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Away(Hanging):
        """It cannot be reached until twice the round's deadline, and the minute, have passed."""

        def WatchRound(  # noqa: N802 - as the stub has it
            self, _request: object, timeout: float
        ) -> Iterator[aggregator_pb2.WatchRoundResponse]:
            self.timeouts.append(timeout)
            if time.monotonic() < back:
                raise Unavailable("nothing listens there")
            yield aggregator_pb2.WatchRoundResponse(
                state=aggregator_pb2.ROUND_STATE_ABORTED, reason=pb.REASON_AGGREGATOR_RESTARTED
            )

    monkeypatch.setattr("coordinator.aggregator_client.IDLE_SECONDS", 0.0)
    stub = Away()
    back = time.monotonic() + 0.6
    ending = client(stub).watch(OPENED, 0.1)
    assert ending.reason == pb.REASON_AGGREGATOR_RESTARTED
    assert len(stub.timeouts) > 1


def test_no_call_has_a_longer_deadline_than_a_node_admits() -> None:
    class Once(Hanging):
        def WatchRound(  # noqa: N802 - as the stub has it
            self, _request: object, timeout: float
        ) -> Iterator[aggregator_pb2.WatchRoundResponse]:
            self.timeouts.append(timeout)
            yield aggregator_pb2.WatchRoundResponse(state=aggregator_pb2.ROUND_STATE_ABORTED)

    stub = Once()
    client(stub).watch(OPENED, MAX_ROUND_SECONDS)
    assert stub.timeouts == [MAX_ROUND_SECONDS]


def test_an_aggregator_is_no_warning_while_it_may_be_starting_and_is_one_once_it_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cairn.transport.retry._QUIET_PAUSE_SECONDS", 0.0)

    class EveryOtherCallIsLost:
        def __init__(self) -> None:
            self.calls = 0

        def RegisterJob(  # noqa: N802 - as the stub has it
            self, _request: object, timeout: float
        ) -> aggregator_pb2.RegisterJobResponse:
            self.calls += 1
            if self.calls % 2:
                raise Unavailable(f"nothing listens there, for {timeout} seconds")
            return aggregator_pb2.RegisterJobResponse(epoch=1)

    asking = client(cast("Any", EveryOtherCallIsLost()))
    with capture_logs() as logs:
        asking.register(b"job")
        asking.register(b"job")
    assert [line["log_level"] for line in logs] == ["info", "warning"]
