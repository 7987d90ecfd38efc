"""Has this owner answer no other job while a round that it joined is open.

It does one thing at a time. If it went on to the next job as soon as its own part was done, whoever invites it to
two jobs would see in the second how long its training in the first took, which may depend on its data. So it
goes on when the round has ended, of which everybody learns. Rounds of one job follow each other anyway.
"""

import threading
import time
from dataclasses import dataclass

from cairn.errors import CairnError, Unavailable
from cairn.runtime.timeouts import CALL_SECONDS
from owner_node.aggregator_client import AggregatorClient
from owner_node.events import Observer, OtherJobAwaited
from owner_node.invitation import Invited
from owner_node.records.history import LedgerHistory
from owner_node.settlement import ASK_EVERY_SECONDS


@dataclass(frozen=True)
class _Joined:
    job: str
    manifest_digest: bytes
    deadline: float  # a moment of the monotonic clock


class Turns:
    """Is asked and told by the one thread that takes part in rounds."""

    def __init__(
        self,
        aggregator: AggregatorClient,
        past: LedgerHistory,
        stopping: threading.Event,
        tell: Observer,
    ) -> None:
        self._aggregator = aggregator
        self._past = past
        self._stopping = stopping
        self._tell = tell
        self._joined: _Joined | None = None

    def joined(self, invited: Invited, deadline: float) -> None:
        """This owner takes part in the round, whatever becomes of it."""
        self._joined = _Joined(invited.job.name, invited.digest, deadline)

    def wait(self, invited: Invited) -> None:
        """Wait, before anything is answered, for the end of the round that this owner joined in another job."""
        last = self._joined
        if last is None or last.job == invited.job.name or not self._is_open(last):
            return
        self._tell(OtherJobAwaited(last.job))
        while not self._stopping.wait(ASK_EVERY_SECONDS) and self._is_open(last):
            pass

    def _is_open(self, last: _Joined) -> bool:
        if self._past.is_released(last.manifest_digest):
            return False
        try:
            return self._aggregator.released(last.manifest_digest) is None
        except Unavailable:  # the deadline ends it all the same
            return time.monotonic() < last.deadline + CALL_SECONDS
        except CairnError:
            return False
