"""The conversation with a coordinator: what it says is worked off in order, and cannot cut a round short."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from cairn.v1 import coordinator_pb2
from owner_node.attending import Attending

LONG = 30.0
SETTINGS: Any = SimpleNamespace(federation="clinics", coordinator="localhost:1", patience_seconds=5)
INVITED = coordinator_pb2.AttendResponse(invitation=coordinator_pb2.Invitation(job_spec=b"job"))
OUTCOME = coordinator_pb2.AttendResponse(outcome=coordinator_pb2.Outcome(manifest_digest=b"m" * 32))
FINISHED = coordinator_pb2.AttendResponse(
    finished=coordinator_pb2.Finished(job="tumours", completed=False)
)


class FakeCoordinator:
    def __init__(self, *events: coordinator_pb2.AttendResponse) -> None:
        self._events = events

    def attend(self, _federation: str) -> Iterator[coordinator_pb2.AttendResponse]:
        yield from self._events


class FakeRounds:
    """Records what it is asked, and holds a round until the test lets it go on."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.told = threading.Event()
        self.go_on = threading.Event()

    def take_part(self, _invitation: coordinator_pb2.Invitation) -> None:
        assert self.go_on.wait(LONG)
        self.log.append("took part")

    def end(self, _outcome: coordinator_pb2.Outcome) -> None:
        self.told.set()

    def take_in(self, _outcome: coordinator_pb2.Outcome) -> None:
        self.log.append("took in the outcome")


def start(rounds: Any, *events: coordinator_pb2.AttendResponse) -> threading.Thread:
    coordinator: Any = FakeCoordinator(*events)
    attending = Attending(SETTINGS, lambda: True, coordinator, rounds, threading.Event())
    running = threading.Thread(target=lambda: attending.run(once=True))
    running.start()
    return running


def test_told_that_the_job_has_ended_it_finishes_its_round_before_it_leaves() -> None:
    rounds = FakeRounds()
    running = start(rounds, INVITED, FINISHED)
    running.join(0.3)
    assert running.is_alive()
    rounds.go_on.set()
    running.join(LONG)
    assert not running.is_alive()
    assert rounds.log == ["took part"]


def test_an_outcome_is_heeded_at_once_and_recorded_after_the_round() -> None:
    rounds = FakeRounds()
    running = start(rounds, INVITED, OUTCOME, FINISHED)
    assert rounds.told.wait(LONG)
    assert rounds.log == []
    rounds.go_on.set()
    running.join(LONG)
    assert rounds.log == ["took part", "took in the outcome"]


def test_a_coordinator_that_says_more_than_is_worked_off_fills_no_memory() -> None:
    rounds = FakeRounds()
    running = start(rounds, *[INVITED] * 1000, OUTCOME, FINISHED)
    assert rounds.told.wait(LONG)
    rounds.go_on.set()
    running.join(LONG)
    assert 0 < len(rounds.log) < 50
