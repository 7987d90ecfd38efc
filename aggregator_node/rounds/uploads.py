"""Who is pushing now: one push of an owner at a time.

The round that it belongs to holds its lock around every call. Times are seconds of a monotonic clock.
"""

from dataclasses import dataclass

from aggregator_node.rounds.upload import Upload
from cairn.errors import LimitExceeded
from cairn.runtime.timeouts import SHORT_WAIT_SECONDS


@dataclass
class _UnderWay:
    push: Upload
    heard_at: float


class Uploads:
    """The pushes under way in one round, by owner."""

    def __init__(self) -> None:
        self._of: dict[str, _UnderWay] = {}

    def check_free(self, owner: str, now: float) -> None:
        """Raise LimitExceeded while the owner has a push under way.

        One that has brought nothing for a moment is ended. Whoever pushes anew has given it up, and where a
        connection is gone and only the owner was told, nothing else would end it for a while.
        """
        before = self._of.get(owner)
        if before is None:
            return
        if now - before.heard_at >= SHORT_WAIT_SECONDS:
            before.push.call.cancel()
        raise LimitExceeded("another push of this owner is under way")

    def begin(self, owner: str, push: Upload, now: float) -> None:
        self.check_free(owner, now)
        self._of[owner] = _UnderWay(push, now)

    def heard(self, owner: str, push: Upload, now: float) -> None:
        """The push has brought something."""
        if self._is_of(owner, push):
            self._of[owner].heard_at = now

    def end(self, owner: str, push: Upload) -> None:
        """The push is over, or complete; may be said twice."""
        if self._is_of(owner, push):
            del self._of[owner]

    def cancel_all(self) -> None:
        for under_way in self._of.values():
            under_way.push.call.cancel()

    def _is_of(self, owner: str, push: Upload) -> bool:
        return owner in self._of and self._of[owner].push is push
