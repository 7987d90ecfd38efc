"""The thread that a node works in, and how its work ended."""

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

_LOOK_EVERY_SECONDS = 0.2


class NodeThread:
    """Does `work` in a thread of its own, with the log's fields of whoever starts it."""

    def __init__(self, work: Callable[[], int], name: str) -> None:
        self._work = work
        self._ended: Future[int] = Future()
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: context.run(self._run), name=name, daemon=True)
        thread.start()

    def wait(self) -> int:
        """Wait for its end; returns what the work returned, or raises what it raised."""
        # A signal that another thread takes wakes nobody here, and Python's handler would have to wait.
        while not self._ended.done():
            with suppress(TimeoutError):
                self._ended.result(_LOOK_EVERY_SECONDS)
        return self._ended.result()

    def _run(self) -> None:
        try:
            self._ended.set_result(self._work())
        except BaseException as error:  # noqa: BLE001 - whoever waits is told, whatever it is
            self._ended.set_exception(error)
