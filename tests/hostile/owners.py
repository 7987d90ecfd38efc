"""An owner that attacks among owners that do not, by hand on the generated stubs."""

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import numpy as np
import pytest

from cairn.model.schema import DTYPES, Schema
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.hostile.checks import ONE_HOT, refuses
from tests.service.network import OWNERS, Ended, Network, OpenRound

INVALID = grpc.StatusCode.INVALID_ARGUMENT
DENIED = grpc.StatusCode.PERMISSION_DENIED
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
RELEASED = aggregator_pb2.ROUND_STATE_RELEASED

Part = aggregator_pb2.SubmitUpdateRequest
_LONGEST_SILENCE = 120.0
TURNS = cycle(OWNERS)  # an aggregator writes down 60 refusals of one owner in an hour


HASTY = (sys.executable, str(Path(__file__).with_name("hasty.py")))


def an_aggregator(
    tmp_path_factory: pytest.TempPathFactory, started_by: Sequence[str] = ()
) -> Iterator[Network]:
    """For the tests of one module: a floor of three, and a lease that no test outlasts."""
    network = Network(tmp_path_factory.mktemp("owners"), started_by, floor=3, lease_seconds=600)
    yield network
    network.stop()


def others_than(*attackers: str) -> list[str]:
    return [owner for owner in OWNERS if owner not in attackers]


def joined_round(
    network: Network, schema: Schema = ONE_HOT, cohort: Collection[str] = OWNERS, **job: Any
) -> OpenRound:
    """A round of a new job, which its whole cohort has joined."""
    opened = network.job(schema=schema, **job).open(sorted(cohort))
    for owner in cohort:
        opened.join(owner)
    return opened


def hot(owner: str, dtype: str = "F32") -> bytes:
    """One element for each owner: 1 in this owner's place, 0 in all others."""
    return np.array([name == owner for name in OWNERS], DTYPES[dtype]).tobytes()


def average_of(owners: Collection[str], dtype: str = "F32") -> bytes:
    """The average of one-hot updates; exact in every type where there are 2 or 4 of them."""
    shares = [(name in owners) / len(owners) for name in OWNERS]
    return np.array(shares, DTYPES[dtype]).tobytes()


def commit(digest: bytes) -> Part:
    return Part(commit=aggregator_pb2.UpdateCommit(payload_digest=digest))


def silent_after(parts: Sequence[Part], goes_on: Event) -> Iterator[Part]:
    """A stream that falls silent after these parts, until it is let go on to its end."""
    yield from parts
    goes_on.wait(_LONGEST_SILENCE)


@contextmanager
def refuses_owner(
    network: Network, owner: str, method: str, code: grpc.StatusCode, reason: str
) -> Iterator[None]:
    with refuses(network, f"owner/{owner}", method, code, reason):
        yield


@contextmanager
def refuses_update(
    network: Network, owner: str, reason: str, code: grpc.StatusCode = INVALID
) -> Iterator[None]:
    """The aggregator must refuse what the owner pushes inside, write it down and change nothing."""
    with refuses(network, f"owner/{owner}", "SubmitUpdate", code, reason):
        yield


def ends_without(opened: OpenRound, *attackers: str, give_up: bool = True) -> Ended:
    """Everybody else pushes a one-hot update; the release must be the average of these alone.

    With `give_up` the attackers leave the round at last, so that it need not wait for its deadline.
    """
    honest = [owner for owner in opened.manifest.cohort if owner not in attackers]
    dtype = opened.job.spec.schema.tensors[0].dtype
    for owner in honest:
        opened.push(owner, hot(owner, dtype))
    for owner in attackers if give_up else ():
        opened.decline(owner, pb.REASON_STOPPING)
    ended = opened.ends()
    assert ended.state == RELEASED
    assert ended.statement.contributors == len(honest)
    assert sorted(ended.exclusions) == sorted(attackers)
    assert ended.payload == average_of(honest, dtype)
    return ended
