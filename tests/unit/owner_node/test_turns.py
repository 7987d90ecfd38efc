"""When an owner goes on to another job: not before the round that it joined has ended."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from cairn.errors import CallerNotAllowed, NotFound, Unavailable
from cairn.v1 import round_pb2 as pb
from owner_node import turns
from owner_node.turns import Turns

ENDED = NotFound("it ended", pb.REASON_ROUND_ENDED)
OPEN = None
STATEMENT = pb.Signed()


class FakeAggregator:
    """Answers in turn whether the round is open; an error is raised."""

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)
        self.asked = 0

    def released(self, _digest: bytes) -> object:
        self.asked += 1
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def invited(job: str, digest: bytes) -> Any:
    return SimpleNamespace(job=SimpleNamespace(name=job), digest=digest)


def waits(
    *answers: object, then: str = "second", released: bool = False, deadline: float = 60.0
) -> int:
    """Wait for the end of a round of the first job; returns how often the aggregator was asked."""
    aggregator: Any = FakeAggregator(*answers)
    past: Any = SimpleNamespace(is_released=lambda _digest: released)
    turn = Turns(aggregator, past, threading.Event(), lambda _: None)
    turn.wait(invited("first", b"a"))
    turn.joined(invited("first", b"a"), time.monotonic() + deadline)
    turn.wait(invited(then, b"b"))
    asked: int = aggregator.asked
    return asked


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "ASK_EVERY_SECONDS", 0.001)


@pytest.mark.parametrize("end", [STATEMENT, ENDED, CallerNotAllowed("not on the roster")])
def test_another_job_waits_for_the_end_of_the_round(end: object) -> None:
    assert waits(OPEN, OPEN, Unavailable("not there"), OPEN, end) == 5


def test_the_next_round_of_the_same_job_waits_for_nothing() -> None:
    assert waits(then="first") == 0


def test_a_release_that_this_owner_has_seen_is_not_asked_for() -> None:
    assert waits(released=True) == 0


def test_an_aggregator_that_is_away_is_not_waited_for_beyond_the_deadline() -> None:
    assert waits(Unavailable("not there"), deadline=-60.0) == 1
