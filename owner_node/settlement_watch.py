"""Asks the aggregator how this owner's rounds ended, in a thread of its own, from its start to its end.

A coordinator that says nothing, or is not there, changes nothing about it, and neither does training.
"""

import threading
from typing import Self

from owner_node.events import EndAwaited, Observer
from owner_node.participation import Participation
from owner_node.settlement import Settlement


class SettlementWatch:
    """Asks while the block runs that it is the context of."""

    def __init__(
        self,
        participation: Participation,
        settlement: Settlement,
        stopping: threading.Event,
        tell: Observer,
    ) -> None:
        self._participation = participation
        self._settlement = settlement
        self._stopping = stopping
        self._tell = tell
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def finish(self) -> None:
        """Wait until no round is open any more in which an update of ours left, or this node is to stop."""
        told = False
        while not self._stopping.is_set():
            self._participation.settle()
            if not self._settlement.awaits_an_end:
                return
            if not told:
                self._tell(EndAwaited())
                told = True
            self._stopping.wait(self._settlement.ask_in)

    def has_ended(self, within: float) -> bool:
        """Whether it asks no more, or will not after so many seconds. For after the block."""
        self._thread.join(within)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._participation.settle()  # of the rounds from before this node was started
        while not self._ended.wait(self._settlement.ask_in):
            self._participation.settle()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
