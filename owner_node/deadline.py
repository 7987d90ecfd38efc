"""The deadline of a round as an owner knows it, and what it cuts off."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cairn.errors import CairnError, WrongState
from cairn.tasks.loader import TaskFailed
from cairn.v1 import round_pb2 as pb
from owner_node.invitation import Declined
from owner_node.lease import Lease
from owner_node.records.ledger import NotRecorded


@dataclass(frozen=True)
class Deadline:
    """It lies between two moments of the monotonic clock: an aggregator says how many seconds are left, rounded up."""

    earliest: float
    latest: float

    @classmethod
    def of(cls, asked: float, open_seconds: int) -> "Deadline":
        """From an answer just now to a question of that moment."""
        return cls(asked + open_seconds - 1, time.monotonic() + open_seconds)

    @contextmanager
    def cuts_off(self, error_of: Callable[[str], CairnError]) -> Iterator[None]:
        """Where the work inside is broken off when the deadline may have passed, raise this error instead.

        What the owner itself decides, and what its task does, stays as it is.
        """
        try:
            yield
        except (Declined, TaskFailed, NotRecorded):
            raise
        except CairnError as error:
            if time.monotonic() < self.earliest:
                raise
            raise error_of(str(error)) from error


def too_late(lease: Lease, why: str) -> CairnError:
    """The work on the data was cut off: what the aggregator tells the others of it."""
    reason = pb.REASON_DEADLINE if lease.may_hold else pb.REASON_LEASE_EXPIRED
    return WrongState(f"the round's deadline passed before this owner was done: {why}", reason)


def not_fetched(why: str) -> CairnError:
    """The base was not there, and the data was not opened."""
    return Declined(
        f"the base was not there before the round's deadline: {why}", pb.REASON_FETCH_FAILED
    )
