"""What a coordinator does by hand on the generated stubs, and what owners do meanwhile."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc

from cairn.protocol.messages import PROTOCOL
from cairn.v1 import aggregator_pb2
from tests.hostile.checks import ONE_HOT, one_hot
from tests.service.network import PROCESS, SECONDS, Job, Network, OpenRound

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
DENIED = grpc.StatusCode.PERMISSION_DENIED
ABORTED = aggregator_pb2.ROUND_STATE_ABORTED
COHORT = ("alice", "bob", "carol")

NewCaller = Callable[[], str]


def new_job(network: Network, caller: str, **terms: Any) -> Job:
    """A registered job of this coordinator, with a place in its model for each owner."""
    values: dict[str, Any] = {"schema": ONE_HOT, "coordinator": caller, "floor": 3}
    return network.job(**values | terms)


def register(network: Network, caller: str, body: bytes) -> aggregator_pb2.RegisterJobResponse:
    request = aggregator_pb2.RegisterJobRequest(job_spec=body, protocol=PROTOCOL, process=PROCESS)
    answer: aggregator_pb2.RegisterJobResponse = network.release(caller).RegisterJob(
        request, timeout=SECONDS
    )
    return answer


def push(opened: OpenRound, updates: Mapping[str, bytes]) -> None:
    """Join and push for honest owners."""
    for owner, update in updates.items():
        opened.join(owner)
        opened.push(owner, update)


def push_one_hots(opened: OpenRound, owners: Sequence[str]) -> None:
    push(opened, {owner: one_hot(owner) for owner in owners})
