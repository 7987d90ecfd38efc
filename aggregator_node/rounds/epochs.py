"""Tells the coordinator that is in charge of a job from those before it, by epochs.

A lock keeps a second process from a run's folder on one machine, and nothing does on two: a coordinator that was
cut off may come back when another was started elsewhere. So the process that registered the job last is in charge,
and what any other asks for is refused, for good: epochs only grow, and are on the disk before they are told.
"""

from aggregator_node.storage.store import Store
from cairn.errors import Fenced, InvalidMessage

_KEPT = 16  # processes of a job that are known again; a call is not repeated after so many others


class Epochs:
    """The epochs of all jobs, in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def enter(self, job: str, process: bytes) -> int:
        """The epoch of this process, the next where it is new. Inside a transaction.

        Raises Fenced for one after which another has entered.
        """
        known = self._store.epochs(job)
        last = max(known, default=0)
        for epoch, entered in known.items():
            if entered == process and epoch < last:
                raise _fenced(job)
            if entered == process:
                return epoch
        self._store.add_epoch(job, last + 1, process, kept=_KEPT)
        return last + 1

    def check(self, job: str, epoch: int) -> None:
        """Raise Fenced for an earlier epoch than the last, InvalidMessage for one that was never given."""
        last = max(self._store.epochs(job), default=0)
        if not 1 <= epoch <= last:
            raise InvalidMessage(
                f"the epoch {epoch} of {job} was never given: register the job first"
            )
        if epoch < last:
            raise _fenced(job)


def _fenced(job: str) -> Fenced:
    return Fenced(
        f"another coordinator has registered the job {job} after this one, and has taken over"
    )
