"""A call is ended when its peer does not do in time what is expected of it, and only then."""

import threading
from collections.abc import Iterator

import pytest

from cairn.runtime.clock import Clock
from cairn.transport.watchdog import Watchdog

LONG = 60.0


class SetClock(Clock):
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Call:
    """Notes the complaints it is ended with."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.ended = threading.Event()

    def late(self, complaint: str) -> None:
        self.complaints.append(complaint)
        self.ended.set()


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def watchdog(clock: SetClock) -> Iterator[Watchdog]:
    watchdog = Watchdog(clock)
    yield watchdog
    watchdog.stop()


def test_a_call_that_is_late_is_ended_once_with_what_it_waited_for(
    clock: SetClock, watchdog: Watchdog
) -> None:
    late, other = Call(), Call()
    watch = watchdog.watch(late.late)
    watch.expect(10, "the request did not come")
    clock.now = 10.0
    assert late.ended.wait(LONG)
    assert watch.was_late
    watchdog.watch(other.late).expect(0, "nor did this one")
    assert other.ended.wait(LONG)
    assert late.complaints == ["the request did not come"]


@pytest.mark.parametrize("how", ["nothing is expected", "it has come", "forgotten", "not yet due"])
def test_a_call_that_is_not_late_goes_on(clock: SetClock, watchdog: Watchdog, how: str) -> None:
    going_on, late = Call(), Call()
    watch = watchdog.watch(going_on.late)
    if how != "nothing is expected":
        watch.expect(10 if how == "not yet due" else 1, "too late")
    if how == "it has come":
        watch.relax()
    if how == "forgotten":
        watchdog.forget(watch)
    clock.now = 5.0
    watchdog.watch(late.late).expect(0, "looked at after the others")
    assert late.ended.wait(LONG)
    assert going_on.complaints == []
    assert not watch.was_late


def test_a_call_that_cannot_be_ended_keeps_no_other_from_it(watchdog: Watchdog) -> None:
    tried = threading.Event()

    def fail(_complaint: str) -> None:
        tried.set()
        raise RuntimeError("it is broken")

    watchdog.watch(fail).expect(0, "too late")
    assert tried.wait(LONG)
    late = Call()
    watchdog.watch(late.late).expect(0, "too late")
    assert late.ended.wait(LONG)
