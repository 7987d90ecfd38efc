"""When what came of the work on the data may leave, where the owner's file says how long that work takes."""

import math
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from cairn.tasks.loader import TaskFailed
from cairn.v1 import round_pb2 as pb
from owner_node.invitation import Declined
from owner_node.work_time import WorkTime

SECONDS = 0.2


def work_time(
    seconds: float | None = SECONDS,
    cancel: Callable[[], object] = lambda: None,
    stopping: threading.Event | None = None,
) -> WorkTime:
    return WorkTime(seconds, cancel, stopping or threading.Event())


class Running(threading.Event):
    """A node that is never told to stop, and whose waits pass at once on a clock of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.now = 0.0
        monkeypatch.setattr(
            "owner_node.work_time.time", SimpleNamespace(monotonic=lambda: self.now)
        )

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now += timeout
        return False


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Running:
    return Running(monkeypatch)


@pytest.mark.parametrize("trained_for", [0.0, 1.0, 3599.0])
def test_what_is_ready_before_leaves_when_the_time_is_over(
    running: Running, trained_for: float
) -> None:
    with work_time(3600, stopping=running) as work:
        running.now += trained_for
        work.wait()
        assert running.now == 3600


@pytest.mark.parametrize("trained_for", [0.0, 1.0, 3599.0])
def test_a_failure_is_told_when_the_time_is_over_as_what_it_is(
    running: Running, trained_for: float
) -> None:
    def train() -> None:
        with work_time(3600, stopping=running):
            running.now += trained_for
            raise TaskFailed("division by zero")

    with pytest.raises(TaskFailed, match="division"):
        train()
    assert running.now == 3600


def test_a_training_that_is_not_done_by_then_is_ended_and_is_a_failure_by_time() -> None:
    cancelled = threading.Event()

    def train() -> None:
        with work_time(cancel=cancelled.set):
            assert cancelled.wait(30)
            raise TaskFailed("the training was cancelled")

    with pytest.raises(Declined, match=r"not done after the 0.2 s .* \(work_seconds\)") as caught:
        train()
    assert caught.value.reason == pb.REASON_DEADLINE


def test_what_is_not_ready_to_leave_by_then_does_not_leave() -> None:
    ended = threading.Event()

    def prepare() -> None:
        with work_time(cancel=ended.set) as work:
            assert ended.wait(30)  # the training was done, and what follows it takes too long
            work.wait()

    with pytest.raises(Declined) as caught:
        prepare()
    assert caught.value.reason == pb.REASON_DEADLINE


def test_a_node_that_stops_waits_for_nothing() -> None:
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(Declined) as caught, work_time(3600, stopping=stopping) as work:
        work.wait()
    assert caught.value.reason == pb.REASON_STOPPING


def test_a_round_that_may_end_before_is_declined_with_the_key_and_the_cure(
    running: Running,
) -> None:
    work = work_time(60, stopping=running)
    work.check_fits(running.now + 60)
    with pytest.raises(Declined, match=r"ends in 59 s.* take 60 \(work_seconds\)") as caught:
        work.check_fits(running.now + 59.3)
    assert caught.value.reason == pb.REASON_SETTING_REFUSED


def test_a_round_that_ends_when_the_work_does_is_long_enough() -> None:
    work = work_time(60)
    work.check_fits(work._ends)
    with pytest.raises(Declined):
        work.check_fits(math.nextafter(work._ends, 0))


def test_without_a_time_nothing_is_waited_for_and_nothing_is_ended() -> None:
    work = work_time(None, cancel=lambda: pytest.fail("it was cancelled"))
    work.check_fits(time.monotonic() - 1)
    work.wait()
    with pytest.raises(TaskFailed), work:
        raise TaskFailed("division by zero")
