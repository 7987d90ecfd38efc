"""The questions about rounds that ended, in a thread that nothing else holds up."""

import threading
from typing import Any

import pytest

from owner_node.settlement_watch import SettlementWatch

LONG = 30.0


class FakeRounds:
    """Rounds of which the last ends with the question of this number."""

    ask_in = 0.01

    def __init__(self, ends_at: int) -> None:
        self._ends_at = ends_at
        self.asked = 0
        self.often = threading.Event()

    @property
    def awaits_an_end(self) -> bool:
        return self.asked < self._ends_at

    def settle(self) -> None:
        self.asked += 1
        if self.asked > 5:
            self.often.set()


def watching(rounds: FakeRounds, stopping: threading.Event | None = None) -> SettlementWatch:
    asks: Any = rounds
    return SettlementWatch(asks, asks, stopping or threading.Event(), lambda _: None)


def test_it_asks_from_the_start_on_and_again_without_any_event() -> None:
    rounds = FakeRounds(ends_at=0)
    with watching(rounds):
        assert rounds.often.wait(LONG)


@pytest.mark.parametrize("questions", [1, 4])
def test_a_node_that_is_to_end_waits_for_the_end_of_its_rounds(questions: int) -> None:
    rounds = FakeRounds(questions)
    watching(rounds).finish()
    assert rounds.asked == questions


def test_a_node_that_is_told_to_stop_waits_for_nothing() -> None:
    rounds, stopping = FakeRounds(ends_at=9), threading.Event()
    stopping.set()
    watching(rounds, stopping).finish()
    assert rounds.asked == 0
