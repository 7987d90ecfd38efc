"""Who is pushing now: one push of an owner at a time.

The round that it belongs to holds its lock around every call.
"""

from aggregator_node.push import Push
from cairn.errors import TooMuch


class Pushes:
    """The pushes under way in one round, by owner."""

    def __init__(self) -> None:
        self._of: dict[str, Push] = {}

    def check_free(self, owner: str) -> None:
        """Raise TooMuch while the owner has a push under way."""
        if owner in self._of:
            raise TooMuch("another push of this owner is under way")

    def begin(self, owner: str, push: Push) -> None:
        self.check_free(owner)
        self._of[owner] = push

    def end(self, owner: str, push: Push) -> None:
        """The push is over, or complete; may be said twice."""
        if self._of.get(owner) is push:
            del self._of[owner]

    def cancel_all(self) -> None:
        for push in self._of.values():
            push.call.cancel()
