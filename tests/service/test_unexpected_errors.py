"""What a peer is told when a handler fails in a way that nobody foresaw."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cairn.v1 import aggregator_pb2, coordinator_pb2
from tests.service.door import ALICE, COORDINATOR, SECONDS, Calls, Door, Ward, dialled

PRIVATE = "/srv/patients/0042.csv"


class Breaking(Door):
    """Fails at a request, in the middle of a request that is a stream, and in the middle of an answer."""

    def JoinRound(self, _request: Any, _context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's
        raise FileNotFoundError(PRIVATE)

    def SubmitUpdate(self, request_iterator: Any, _context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's
        next(request_iterator)
        raise KeyError(PRIVATE)

    def Attend(self, _request: Any, _context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802 - gRPC's
        yield coordinator_pb2.AttendResponse()
        raise ValueError(PRIVATE)


CALLS: dict[str, Callable[[Calls], object]] = {
    "a request": lambda calls: calls.join(),
    "a stream of requests": lambda calls: calls.intake.SubmitUpdate(
        iter([aggregator_pb2.SubmitUpdateRequest()]), timeout=SECONDS
    ),
    "a stream of answers": lambda calls: list(
        calls.invitations.Attend(coordinator_pb2.AttendRequest(), timeout=SECONDS)
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_the_text_of_an_unexpected_exception_stays_in_the_node(tmp_path: Path, what: str) -> None:
    ward = Ward(tmp_path)
    with Breaking(ward.home(COORDINATOR)) as door:
        calls = dialled(door, ward.home(ALICE))
        with calls.channel, pytest.raises(grpc.RpcError) as raised:
            CALLS[what](calls)
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "the node failed; its own log says why"
    assert PRIVATE not in repr((error.initial_metadata(), error.trailing_metadata()))
