"""The conversation with a coordinator: what it says is worked off in order, and cannot cut a round short."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from cairn.errors import (
    CairnError,
    CallerNotAllowed,
    InvalidMessage,
    LimitExceeded,
    Unavailable,
    WrongState,
)
from cairn.transport import retry
from cairn.v1 import coordinator_pb2
from owner_node.coordinator_session import CoordinatorSession

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
        self.settled = threading.Event()

    def settle(self) -> None:
        self.settled.set()

    def take_part(self, _invitation: coordinator_pb2.Invitation) -> None:
        assert self.go_on.wait(LONG)
        self.log.append("took part")

    def end(self, _outcome: coordinator_pb2.Outcome) -> None:
        self.told.set()

    def take_in(self, _outcome: coordinator_pb2.Outcome) -> None:
        self.log.append("took in the outcome")


def start(rounds: Any, *events: coordinator_pb2.AttendResponse) -> threading.Thread:
    coordinator: Any = FakeCoordinator(*events)
    attending = CoordinatorSession(SETTINGS, lambda: True, coordinator, rounds, threading.Event())
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


def test_large_invitations_that_wait_do_not_add_up_in_memory() -> None:
    large = coordinator_pb2.AttendResponse(
        invitation=coordinator_pb2.Invitation(job_spec=bytes(9 << 20))
    )
    rounds = FakeRounds()
    running = start(rounds, INVITED, *[large] * 8, OUTCOME, FINISHED)
    assert rounds.told.wait(LONG)
    rounds.go_on.set()
    running.join(LONG)
    # At most the one that is worked on and one that waits, and with it what is small.
    assert len(rounds.log) in {3, 4}
    assert rounds.log[-1] == "took in the outcome"


def test_an_owner_asks_how_its_rounds_ended_when_the_coordinator_says_no_more() -> None:
    """An outcome that was lost with the stream is not sent again."""

    class BreaksOff:
        def __init__(self) -> None:
            self.held = threading.Event()
            self.streams = 0

        def attend(self, _federation: str) -> Iterator[coordinator_pb2.AttendResponse]:
            self.streams += 1
            if self.streams == 1:
                raise Unavailable("the connection is gone")
            self.held.wait(LONG)
            yield FINISHED

    rounds, coordinator = FakeRounds(), BreaksOff()
    stopping = threading.Event()
    attending = CoordinatorSession(
        SETTINGS, lambda: True, cast("Any", coordinator), cast("Any", rounds), stopping
    )
    running = threading.Thread(target=lambda: attending.run(once=True))
    running.start()
    assert rounds.settled.wait(LONG)
    assert coordinator.streams <= 2
    coordinator.held.set()
    running.join(LONG)


def test_a_stream_that_breaks_off_again_and_again_during_a_round_keeps_no_invitation_out() -> None:
    class Flapping:
        """Its stream breaks off 40 times while the first round is under way, and then it says more."""

        def __init__(self) -> None:
            self.streams = 0
            self.is_back = threading.Event()

        def attend(self, _federation: str) -> Iterator[coordinator_pb2.AttendResponse]:
            self.streams += 1
            if self.streams == 1:
                yield INVITED
            if self.streams <= 40:
                raise Unavailable("the connection is gone")
            yield INVITED
            self.is_back.set()
            yield FINISHED

    rounds, coordinator = FakeRounds(), Flapping()
    attending = CoordinatorSession(
        SETTINGS, lambda: True, cast("Any", coordinator), cast("Any", rounds), Hasty()
    )
    running = threading.Thread(target=lambda: attending.run(once=True))
    running.start()
    assert coordinator.is_back.wait(LONG)
    rounds.go_on.set()
    running.join(LONG)
    assert rounds.log == ["took part", "took part"]
    assert rounds.settled.is_set()


def test_a_coordinator_is_no_warning_while_it_may_be_starting_and_is_one_once_it_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "_QUIET_PAUSE_SECONDS", 0.0)
    stopping = Hasty()
    serving = [False, True, False, True]

    def is_serving() -> bool:
        if len(serving) == 1:
            stopping.set()
        return serving.pop(0)

    coordinator: Any = FakeCoordinator()
    with capture_logs() as logs:
        CoordinatorSession(
            SETTINGS, is_serving, coordinator, cast("Any", FakeRounds()), stopping
        ).run(once=False)
    told = [line["log_level"] for line in logs if line["event"].startswith("cannot reach a peer")]
    assert told == ["info", "warning"]


class Hasty(threading.Event):
    """Pauses pass at once."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(0 if timeout is not None else None)


class Stop(threading.Event):
    """Is not waited for: a pause is noted, and the second one ends the node."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout)
        if len(self.pauses) > 1:
            self.set()
        return self.is_set()


class BrokenCoordinator:
    def __init__(self, error: CairnError) -> None:
        self._error = error

    def attend(self, _federation: str) -> Iterator[coordinator_pb2.AttendResponse]:
        raise self._error


def attend_a_coordinator_that_answers(error: CairnError) -> Stop:
    stopping = Stop()
    coordinator: Any = BrokenCoordinator(error)
    rounds: Any = FakeRounds()
    CoordinatorSession(SETTINGS, lambda: True, coordinator, rounds, stopping).run(once=False)
    return stopping


@pytest.mark.parametrize(
    "error", [CairnError("RESOURCE_EXHAUSTED: too large"), LimitExceeded("busy")]
)
def test_a_stream_that_cannot_be_followed_does_not_end_the_node(error: CairnError) -> None:
    assert attend_a_coordinator_that_answers(error).pauses[0] == 10.0


@pytest.mark.parametrize(
    "error", [CallerNotAllowed("not you"), WrongState("elsewhere"), InvalidMessage("version 1")]
)
def test_a_mistake_that_waiting_does_not_mend_ends_the_node(error: CairnError) -> None:
    with pytest.raises(type(error)):
        attend_a_coordinator_that_answers(error)
