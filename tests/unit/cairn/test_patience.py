"""Waiting for a peer: visibly, and not for ever."""

import threading

import pytest
from structlog.testing import capture_logs

from cairn import patience
from cairn.errors import Unavailable, WrongState
from cairn.patience import patiently

LONG = 30.0


def test_a_call_is_repeated_until_it_succeeds() -> None:
    calls: list[None] = []

    def call() -> str:
        calls.append(None)
        if len(calls) < 3:
            raise Unavailable("no")
        return "yes"

    assert patiently(call, "the peer", LONG, threading.Event()) == "yes"


def test_patience_ends_with_the_peer_the_seconds_and_the_last_trouble() -> None:
    def call() -> None:
        raise Unavailable("nothing listens there")

    with pytest.raises(Unavailable, match=r"the peer after 0\.05 seconds: nothing listens"):
        patiently(call, "the peer", 0.05, threading.Event())


def test_waiting_ends_when_the_node_is_told_to_stop() -> None:
    stopping = threading.Event()

    def call() -> None:
        stopping.set()
        raise Unavailable("nothing listens there")

    with pytest.raises(Unavailable, match="stopped"):
        patiently(call, "the peer", LONG, stopping)


def test_an_error_that_waiting_does_not_mend_passes_at_once() -> None:
    calls = []

    def call() -> None:
        calls.append(True)
        raise WrongState("the round has ended")

    with pytest.raises(WrongState):
        patiently(call, "the peer", LONG, threading.Event())
    assert len(calls) == 1


def test_a_peer_that_stays_away_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_QUIET_PAUSE_SECONDS", 0.0)

    def call() -> None:
        raise Unavailable("nothing listens there")

    with capture_logs() as logs, pytest.raises(Unavailable):
        patiently(call, "the peer", 0.05, threading.Event())
    assert logs[0]["peer"] == "the peer"
    assert logs[0]["trouble"] == "nothing listens there"


def test_patience_begins_anew_after_a_call_that_had_reached_its_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "IDLE_SECONDS", -1.0)  # every call counts as a long one
    calls: list[None] = []

    def call() -> str:
        calls.append(None)
        if len(calls) < 4:
            raise Unavailable("the stream broke off")
        return "the end"

    assert patiently(call, "the peer", 0.001, threading.Event()) == "the end"
