"""The memory of the updates under way: a few buffers, borrowed in the order in which owners ask.

The buffers are made once for a job and used again for every update. If none is free, the owner waits in
line and sends nothing meanwhile; HTTP/2 flow control limits what an impatient one can make us hold.

A buffer whose update is not added yet is kept beyond its upload. There are further buffers for these, which
nobody else gets, so a kept one holds up no line.

What was in a buffer is in the sums by then, or counts for nothing. It is overwritten at the latest when the
round ends: by the next update, where an owner waits for the buffer, and else by zeros.
"""

import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np

from cairn.errors import Unavailable
from cairn.runtime.timeouts import IDLE_SECONDS

# A cancelled upload ends at once, but a look at many gigabytes takes its time.
_RETURN_SECONDS = 2 * IDLE_SECONDS


class BufferPool:
    """Buffers of one size. Every method may be called from any thread."""

    def __init__(self, count: int, nbytes: int, to_keep: int = 0) -> None:
        """Make `count` buffers to borrow, and `to_keep` in the place of those that are kept."""
        self.nbytes = nbytes
        self.count = count
        self.to_keep = to_keep
        self._free = [memoryview(anonymous(nbytes))[:nbytes] for _ in range(count + to_keep)]
        self._passed_on: list[memoryview] = []  # free as well, and not overwritten yet
        # By their id: the memory may be borrowed again before the loan that was kept has ended.
        self._loans: dict[int, memoryview] = {}
        self._kept: dict[int, memoryview] = {}
        self._is_open = True
        self._line: list[str] = []
        self._changed = threading.Condition()

    @contextmanager
    def borrow(self, owner: str, is_over: Callable[[], bool]) -> Iterator[memoryview]:
        """Borrow a buffer inside, after a wait in line; it is given back then, unless it is kept.

        Raises Unavailable once `is_over` says so, which is asked first and whenever `wake` is called, and
        where the round has ended.
        """
        buffer = self._take(owner, is_over)
        try:
            yield buffer
        finally:
            with self._changed:
                is_kept = self._loans.pop(id(buffer), None) is None
            if not is_kept:
                self._put_back(buffer)

    def keep(self, buffer: memoryview) -> None:
        """Keep a borrowed buffer as it is until `give_back`, or until the round ends."""
        with self._changed:
            self._kept[id(buffer)] = self._loans.pop(id(buffer))
            self._changed.notify_all()

    def give_back(self, buffer: memoryview) -> None:
        """A kept buffer is needed no more."""
        with self._changed:
            del self._kept[id(buffer)]
        self._put_back(buffer)

    def place(self, owner: str) -> int:
        """Where the owner stands in line: 1 is the next, 0 is not in line."""
        with self._changed:
            return self._line.index(owner) + 1 if owner in self._line else 0

    @property
    def are_waited_for(self) -> bool:
        with self._changed:
            return bool(self._line)

    def wake(self) -> None:
        """Have those in line ask whether it is over for them."""
        with self._changed:
            self._changed.notify_all()

    def begin(self) -> None:
        """A round begins that may use them."""
        with self._changed:
            self._is_open = True

    def end(self) -> bool:
        """The round has ended: none of them can be borrowed before `begin`.

        Waits for those that are still borrowed, by uploads that were cancelled or whose update is being looked at.
        All that are back are overwritten, as are the kept ones. Returns False where one is not: then none may
        be used again.
        """
        with self._changed:
            self._is_open = False
            self._passed_on += self._kept.values()
            self._kept.clear()
            self._changed.notify_all()
            are_back = self._changed.wait_for(
                lambda: len(self._free) + len(self._passed_on) == self.count + self.to_keep,
                _RETURN_SECONDS,
            )
            while self._passed_on:
                _erase(self._passed_on[-1])
                self._free.append(self._passed_on.pop())
            return are_back

    def _take(self, owner: str, is_over: Callable[[], bool]) -> memoryview:
        with self._changed:
            self._line.append(owner)
            try:
                while self._is_open and not is_over():
                    if self._line[0] == owner and self._has_one_to_spare():
                        loan = (self._passed_on or self._free).pop()[:]
                        self._loans[id(loan)] = loan
                        return loan
                    self._changed.wait()
            finally:
                self._line.remove(owner)
                self._changed.notify_all()
        raise Unavailable("the wait for a turn to push is over")

    def _has_one_to_spare(self) -> bool:
        spared = max(0, self.to_keep - len(self._kept))
        return len(self._free) + len(self._passed_on) > spared

    def _put_back(self, buffer: memoryview) -> None:
        with self._changed:
            if self._is_open and self._line:
                self._passed_on.append(buffer)
                self._changed.notify_all()
                return
        _erase(buffer)
        with self._changed:
            self._free.append(buffer)
            self._changed.notify_all()


def _erase(buffer: memoryview) -> None:
    np.frombuffer(buffer, np.uint8).fill(0)


def anonymous(nbytes: int) -> mmap.mmap:
    """Private zeroed memory of this size, at least one byte, in large pages where the kernel has them."""
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a page fault for 2 MiB instead of 4 KiB is not to be had here
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
