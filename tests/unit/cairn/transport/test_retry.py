"""Waiting for a peer: visibly, and not for ever."""

import threading
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from cairn.errors import PeerUntrusted, Unavailable, WrongState
from cairn.transport import retry
from cairn.transport.retry import retry_while_unavailable

LONG = 30.0


def test_a_call_is_repeated_until_it_succeeds() -> None:
    calls: list[None] = []

    def call() -> str:
        calls.append(None)
        if len(calls) < 3:
            raise Unavailable("no")
        return "yes"

    assert retry_while_unavailable(call, "the peer", LONG, threading.Event()) == "yes"


def test_patience_ends_with_the_peer_the_seconds_and_the_last_trouble() -> None:
    def call() -> None:
        raise Unavailable("nothing listens there")

    with pytest.raises(Unavailable, match=r"the peer after 0\.05 seconds: nothing listens"):
        retry_while_unavailable(call, "the peer", 0.05, threading.Event())


def test_waiting_ends_when_the_node_is_told_to_stop() -> None:
    stopping = threading.Event()

    def call() -> None:
        stopping.set()
        raise Unavailable("nothing listens there")

    with pytest.raises(Unavailable, match="stopped"):
        retry_while_unavailable(call, "the peer", LONG, stopping)


def test_an_error_that_waiting_does_not_mend_passes_at_once() -> None:
    calls = []

    def call() -> None:
        calls.append(True)
        raise WrongState("the round has ended")

    with pytest.raises(WrongState):
        retry_while_unavailable(call, "the peer", LONG, threading.Event())
    assert len(calls) == 1


def test_a_peer_that_stays_away_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_QUIET_PAUSE_SECONDS", 0.0)

    def call() -> None:
        raise Unavailable("nothing listens there")

    with capture_logs() as logs, pytest.raises(Unavailable):
        retry_while_unavailable(call, "the peer", 0.05, threading.Event())
    assert logs[0]["peer"] == "the peer"
    assert logs[0]["trouble"] == "nothing listens there"


def test_patience_begins_anew_after_a_call_that_had_reached_its_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "IDLE_SECONDS", -1.0)  # every call counts as a long one
    calls: list[None] = []

    def call() -> str:
        calls.append(None)
        if len(calls) < 4:
            raise Unavailable("the stream broke off")
        return "the end"

    assert retry_while_unavailable(call, "the peer", 0.001, threading.Event()) == "the end"


class Pauses(threading.Event):
    """A node that is never told to stop, and whose pauses pass at once on a clock of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.pauses: list[float] = []
        self.now = 0.0
        monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: self.now))

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        self.now += timeout
        return False


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    return Pauses(monkeypatch)


def test_pauses_are_drawn_at_random_and_never_longer_than_a_second(pauses: Pauses) -> None:
    """Full jitter: owners whose peer was away do not all come back at the same moment."""

    def call() -> None:
        raise Unavailable("nothing listens there")

    with pytest.raises(Unavailable, match="after 3600 seconds"):
        retry_while_unavailable(call, "the peer", 3600.0, pauses)
    assert 3600 <= pauses.now <= 3601
    first, later = pauses.pauses[:4], sorted(pauses.pauses[4:])
    assert all(pause <= 0.1 * 2**tried for tried, pause in enumerate(first))
    assert 0 <= later[0] < 0.1
    assert 0.9 < later[-1] <= 1
    assert 0.4 < later[len(later) // 2] < 0.6


def test_a_peer_that_does_not_fit_is_given_up_after_a_minute_however_long_patience_is(
    pauses: Pauses,
) -> None:
    def call() -> None:
        raise PeerUntrusted("another certificate")

    with pytest.raises(PeerUntrusted, match="the peer after 60 seconds: another certificate"):
        retry_while_unavailable(call, "the peer", 3600.0, pauses)
    assert 60 <= pauses.now <= 62


def test_a_peer_that_stops_now_and_then_is_none_that_does_not_fit(pauses: Pauses) -> None:
    """Each time it may look like one that refuses us, once."""
    stopped = [60.0 * minute for minute in range(1, 50)]

    def call() -> None:
        if stopped and pauses.now >= stopped[0]:
            stopped.pop(0)
            raise PeerUntrusted("the peer hung up")
        raise Unavailable("nothing listens there")

    with pytest.raises(Unavailable, match="after 3600 seconds: nothing listens there"):
        retry_while_unavailable(call, "the peer", 3600.0, pauses)


def test_short_patience_ends_before_the_minute_is_over(pauses: Pauses) -> None:
    def call() -> None:
        raise PeerUntrusted("another certificate")

    with pytest.raises(Unavailable, match="after 5 seconds: another certificate"):
        retry_while_unavailable(call, "the peer", 5.0, pauses)


def test_certificates_that_are_renewed_one_after_the_other_cost_no_node(pauses: Pauses) -> None:
    def call() -> str:
        if pauses.now < 50:
            raise PeerUntrusted("another certificate")
        return "accepted"

    assert retry_while_unavailable(call, "the peer", 3600.0, pauses) == "accepted"


def test_a_peer_that_refuses_us_only_while_it_stops_is_waited_for(pauses: Pauses) -> None:
    """Its listener may end a connection just after the handshake."""
    stops = iter(range(0, 3600, 500))
    due = next(stops)

    def call() -> None:
        nonlocal due
        if pauses.now >= due:
            due = next(stops, 1 << 30)
            raise PeerUntrusted("it ended the connection")
        raise Unavailable("nothing listens there")

    with pytest.raises(Unavailable, match="after 3600 seconds: nothing listens"):
        retry_while_unavailable(call, "the peer", 3600.0, pauses)


def levels_told(
    pauses: Pauses, trouble: Unavailable, *, reached_before: bool
) -> list[tuple[str, float]]:
    """What is logged of 200 seconds of this trouble: each line's level, and after how many seconds."""

    def call() -> None:
        if pauses.now < 200:
            raise trouble

    with capture_logs() as logs:
        retry_while_unavailable(call, "the peer", 3600.0, pauses, reached_before=reached_before)
    assert {line["event"] for line in logs} == {"cannot reach a peer, trying again"}
    return [(line["log_level"], line["waited_seconds"]) for line in logs]


def test_a_peer_that_was_never_reached_is_no_warning_before_it_could_have_started(
    pauses: Pauses,
) -> None:
    told = levels_told(pauses, Unavailable("nothing listens there"), reached_before=False)
    assert [level for level, _ in told] == ["info", "warning", "warning"]
    (_, first), (_, second), (_, third) = told
    assert 5 <= first <= 6  # a pause takes up to a second
    assert 60 <= second <= 61
    assert 120 <= third <= 123


def test_a_peer_that_was_reached_and_is_gone_is_a_warning_after_a_moment(pauses: Pauses) -> None:
    told = levels_told(pauses, Unavailable("nothing listens there"), reached_before=True)
    assert {level for level, _ in told} == {"warning"}
    assert 5 <= told[0][1] <= 6


def test_a_stranger_at_the_peers_address_is_a_warning_after_a_moment(
    pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_DISTRUSTED_SECONDS", 3600.0)
    told = levels_told(pauses, PeerUntrusted("another certificate"), reached_before=False)
    assert {level for level, _ in told} == {"warning"}
    assert 5 <= told[0][1] <= 6
