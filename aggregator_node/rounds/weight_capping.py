"""Counts the accepted updates of one round, and adds each to its sums: at once, or when its weight is known.

A rule that needs all updates together is given them at the end, in the order of the owners' names or in one that is
drawn; they stay in their buffers until the round's memory is given up.

An update whose weight may turn out to be above the round's cap (`shares`) is held back in the buffer that it
came in. What is added depends on who was accepted and never on the order: neither the cap nor an exact sum does.
"""

from collections.abc import Collection
from hashlib import sha256

from aggregator_node.aggregation.rules import RULES
from aggregator_node.aggregation.workspace import Workspace
from aggregator_node.events import Observer, SumsRefused
from aggregator_node.rounds.upload import RoundContext, Upload
from cairn.errors import Unavailable
from cairn.v1 import round_pb2 as pb


class WeightCapping:
    """The updates of one round. The round holds a lock around every call."""

    def __init__(self, context: RoundContext, tell: Observer) -> None:
        self._context = context
        self._tell = tell
        self._trains = context.manifest.trains
        self._may_hold = context.most_held > 0
        cohort = len(context.manifest.cohort)
        self._collects = RULES[context.job.aggregation.rule].held_updates(cohort) > 0
        self._weights: dict[str, int] = {}  # in the order of arrival
        self._held: dict[str, Upload] = {}
        self._added = 0
        # Not the error itself: its traceback would keep what it was about to add.
        self._failure: tuple[str, pb.Reason] | None = None

    def take(self, owner: str, upload: Upload, workspace: Workspace) -> "pb.Reason":
        """Count the owner's update, and add what is decided by now.

        Returns why the round cannot go on, where there is no memory for sums of such values.
        """
        self._weights[owner] = self._context.weight(upload.header.examples)
        if self._trains and self._failure is None:
            try:
                self._take(owner, upload, workspace)
            except Unavailable as error:
                self._failure = str(error), error.reason
                self._tell(SumsRefused(*self._context.ids, owner, str(error)))
        return self._failure[1] if self._failure is not None else pb.REASON_UNSPECIFIED

    def finish(self, workspace: Workspace) -> dict[str, int]:
        """Add what was held back; returns how much each owner counts.

        Raises Unavailable where there is no memory for the sums, now or before.
        """
        if self._failure is not None:
            raise Unavailable(*self._failure)
        cap = self._context.share.cap(self._weights.values())
        counts = {owner: min(weight, cap) for owner, weight in self._weights.items()}
        for owner in sorted(self._held, key=self._place):
            self._add_held(owner, counts[owner], workspace)
        # To count an update and not to add it would release an average of fewer than is stated.
        if self._added != (len(counts) if self._trains else 0):
            raise AssertionError(f"{self._added} updates were added, {len(counts)} are counted")
        return counts

    def forget(self) -> None:
        """The round is over: forget what is held back."""
        self._held.clear()

    def _take(self, owner: str, upload: Upload, workspace: Workspace) -> None:
        undecided = self._undecided()
        if owner in undecided:
            workspace.buffers.keep(upload.kept)
            self._held[owner] = upload
        else:
            self._add(upload, self._weights[owner], workspace)
        for decided in self._held.keys() - set(undecided):
            self._add_held(decided, self._weights[decided], workspace)

    def _undecided(self) -> Collection[str]:
        """Whose updates have to wait."""
        if self._collects:
            return self._weights
        return self._context.share.undecided(self._weights) if self._may_hold else []

    def _place(self, owner: str) -> bytes:
        """Its place in an order that has nothing to do with its update: by name, or drawn."""
        name, seed = owner.encode(), self._context.draw_seed
        return sha256(seed + name).digest() if seed else name

    def _add_held(self, owner: str, weight: int, workspace: Workspace) -> None:
        held = self._held.pop(owner)
        try:
            self._add(held, weight, workspace)
        finally:
            if not self._collects:
                workspace.buffers.give_back(held.kept)

    def _add(self, upload: Upload, weight: int, workspace: Workspace) -> None:
        workspace.rule.add_blocks(upload.reading(), weight)
        self._added += 1
