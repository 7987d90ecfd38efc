"""A call that brings a push, where there is no network."""

from collections.abc import Callable


class FakeCall:
    """Active until it is cancelled; then it tells who asked to be told."""

    def __init__(self) -> None:
        self.cancelled = False
        self._callbacks: list[Callable[[], None]] = []

    def cancel(self) -> None:
        self.cancelled = True
        for callback in self._callbacks:
            callback()

    def is_active(self) -> bool:
        return not self.cancelled

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if self.cancelled:
            return False
        self._callbacks.append(callback)
        return True
