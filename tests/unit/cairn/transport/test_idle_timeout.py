"""A transfer is ended by silence, and by nothing else."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cairn.runtime.clock import Clock
from cairn.transport import idle_timeout
from cairn.transport.idle_timeout import cancel_when_idle
from tests.scenarios.processes import until

REAL_WAIT = 0.001  # of the thread that watches, while the fake clock stands still


class FakeClock(Clock):
    """Stands still until it is set, and counts how often it is asked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0

    def monotonic(self) -> float:
        self.asked += 1
        return self.now

    def is_looked_at(self) -> None:
        """Return when somebody has looked at it and acted on that."""
        before = self.asked
        until(lambda: self.asked >= before + 3, "the watch looks at the clock")


class Transfer:
    def __init__(self) -> None:
        self.cancelled = threading.Semaphore(0)
        self.times = 0

    def cancel(self) -> None:
        self.times += 1
        self.cancelled.release()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def idle_seconds(monkeypatch: pytest.MonkeyPatch) -> float:
    """As short as what the watch really waits between two looks at a clock that stands still."""
    monkeypatch.setattr(idle_timeout, "IDLE_SECONDS", REAL_WAIT)
    return REAL_WAIT


def watches() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "idle-timeout"]


@contextmanager
def no_watch_is_left() -> Iterator[None]:
    yield
    until(lambda: not watches(), "every watch has ended")


def test_a_transfer_that_brings_nothing_for_long_enough_is_cancelled_once(
    clock: FakeClock, idle_seconds: float
) -> None:
    transfer = Transfer()
    with no_watch_is_left(), cancel_when_idle(transfer.cancel, clock):
        clock.is_looked_at()
        assert transfer.times == 0
        clock.now = idle_seconds
        assert transfer.cancelled.acquire(timeout=60)
        until(lambda: not watches(), "the watch has ended")
    assert transfer.times == 1


def test_a_transfer_with_less_time_than_others_is_cancelled_earlier(clock: FakeClock) -> None:
    transfer = Transfer()
    with no_watch_is_left(), cancel_when_idle(transfer.cancel, clock, REAL_WAIT):
        clock.is_looked_at()
        assert transfer.times == 0
        clock.now = REAL_WAIT
        assert transfer.cancelled.acquire(timeout=60)


def test_nobody_has_more_time_than_others(clock: FakeClock, idle_seconds: float) -> None:
    transfer = Transfer()
    with no_watch_is_left(), cancel_when_idle(transfer.cancel, clock, 1e6):
        clock.now = idle_seconds
        assert transfer.cancelled.acquire(timeout=60)


def test_a_transfer_that_is_heard_of_lasts_as_long_as_it_likes(
    clock: FakeClock, idle_seconds: float
) -> None:
    transfer = Transfer()
    with no_watch_is_left(), cancel_when_idle(transfer.cancel, clock) as heard:
        for _ in range(20):
            clock.now += 0.75 * idle_seconds
            heard()
            clock.is_looked_at()
        assert transfer.times == 0
        clock.now += idle_seconds
        assert transfer.cancelled.acquire(timeout=60)


def test_a_transfer_that_has_ended_is_not_cancelled(clock: FakeClock) -> None:
    transfer = Transfer()
    with no_watch_is_left(), cancel_when_idle(transfer.cancel, clock):
        pass
    watched = cancel_when_idle(transfer.cancel, clock)
    with no_watch_is_left(), pytest.raises(OSError, match="broken"), watched:
        raise OSError("broken")
    clock.now = 1e9
    assert transfer.times == 0
