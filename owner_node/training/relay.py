"""Lets a task in a sandbox print on its node's console or into its log, without having that file or terminal itself.

With the file's descriptor it could read the log, cut it off or write over it, and read what is typed at a terminal.
"""

import os
import threading
from contextlib import suppress
from dataclasses import dataclass

from cairn.runtime.timeouts import SHUTDOWN_SECONDS

_PIECE_BYTES = 1 << 16


@dataclass
class Relay:
    """`end` is what the task is given. What it writes there comes out at the descriptor that was named."""

    end: int
    thread: threading.Thread

    @classmethod
    def to(cls, descriptor: int) -> "Relay":
        read, write = os.pipe()
        thread = threading.Thread(target=_pass_on, args=(read, descriptor), daemon=True)
        thread.start()
        return cls(write, thread)

    def given(self) -> None:
        """The task has its own copy of the end, or never gets one."""
        os.close(self.end)

    def finish(self) -> None:
        """Wait until the last words are out; what outlives the task may hold the pipe open, and is not waited for."""
        self.thread.join(SHUTDOWN_SECONDS)


def _pass_on(read: int, descriptor: int) -> None:
    try:
        while piece := os.read(read, _PIECE_BYTES):
            with suppress(OSError):  # nobody sees it: the task is not to notice
                while piece:
                    piece = piece[os.write(descriptor, piece) :]
    finally:
        os.close(read)
