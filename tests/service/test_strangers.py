"""What keeps a connection from coming about is told in plain words, and is not waited for as a passing fault is.

gRPC says UNAVAILABLE for all of it. Here every connection of every role meets real listeners.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from cairn.errors import CallerNotAllowed, PeerUntrusted, Unavailable
from cairn.identity.names import Role
from cairn.identity.trust import PeerTrust
from cairn.runtime.timeouts import CALL_SECONDS
from cairn.transport import retry
from cairn.transport.channel import dial
from cairn.transport.health_client import is_serving
from cairn.transport.retry import retry_while_unavailable
from cairn.transport.server import Server
from cairn.transport.status import translated
from coordinator.aggregator_client import AggregatorClient
from owner_node.coordinator_client import CoordinatorClient
from owner_node.coordinator_session import CoordinatorSession
from tests.service import strangers
from tests.service.door import AGGREGATOR, ALICE, COORDINATOR, FEDERATION, Calls, Home, Ward

LONG = 3600.0


class OtherPort:
    """A node's listener without any service of its own but its health."""

    def __init__(self, home: Home) -> None:
        self._listener = Server(home.identity(), long_callers=1)

    def __enter__(self) -> str:
        return f"localhost:{self._listener.start('localhost:0')}"

    def __exit__(self, *_error: object) -> None:
        self._listener.stop(0.0)


Stranger = Callable[[Ward, Ward, Any], AbstractContextManager[tuple[str, bytes]]]


def attend(ward: Ward, address: str, _shown: bytes, seconds: float) -> None:
    """What an owner does all the time."""
    settings: Any = SimpleNamespace(
        federation=FEDERATION, coordinator=address, patience_seconds=seconds
    )
    rounds: Any = SimpleNamespace(settle=lambda: None)
    with dial(address, ward.home(ALICE).identity()) as channel:
        CoordinatorSession(
            settings,
            lambda: is_serving(channel, CALL_SECONDS),
            CoordinatorClient(channel, lambda: None),
            rounds,
            threading.Event(),
        ).run(once=True)


def join(ward: Ward, address: str, shown: bytes, seconds: float) -> None:
    """What an owner begins a round with."""
    pin = PeerTrust(Role.AGGREGATOR, FEDERATION, shown, ward.directory / "pinned.crt")
    with dial(address, ward.home(ALICE).identity(), pin) as channel:
        calls = Calls(channel)

        def call() -> None:
            with translated():
                calls.join()

        retry_while_unavailable(call, f"the aggregator at {address}", seconds, threading.Event())


def register(ward: Ward, address: str, shown: bytes, seconds: float) -> None:
    """What a coordinator begins a job with."""
    pin = PeerTrust(Role.AGGREGATOR, FEDERATION, shown, ward.directory / "pinned.crt")
    key = Ed25519PrivateKey.generate().public_key()
    with dial(address, ward.home(COORDINATOR).identity(), pin) as channel:
        AggregatorClient(channel, address, key, seconds, threading.Event()).register(b"")


CONNECTIONS = {attend: COORDINATOR, join: AGGREGATOR, register: AGGREGATOR}
LASTING: dict[Stranger, tuple[str, str]] = {  # the reason, and the cure
    strangers.of_another_authority: ("not the one that this node trusts", "correct the address"),
    strangers.with_another_certificate: (
        "not the one that this node trusts",
        "ask whoever runs that node for its present one",
    ),
    strangers.out_of_date: (
        "is out of date (certificate has expired)",
        "whoever runs that node renews it, or a clock is wrong",
    ),
    strangers.of_another_host: (
        "does not hold the host name that this node dials",
        "have it signed again with that name",
    ),
    strangers.that_does_not_trust_us: (
        "ends the connection when it has seen this node's certificate",
        "have it signed again by the authority that the peer trusts",
    ),
    strangers.without_tls: ("does not speak TLS", "correct the address"),
    strangers.of_the_web: ("does not speak TLS", "correct the address"),
    strangers.of_the_web_in_tls: ("speaks TLS but not gRPC", "correct the address"),
}
CASES = [
    (connect, stranger)
    for connect in CONNECTIONS
    for stranger in LASTING
    # An owner trusts any coordinator of its authority, whatever certificate that has.
    if (connect, stranger) != (attend, strangers.with_another_certificate)
]


def named(value: object) -> str:
    return getattr(value, "__name__", "")


@pytest.fixture
def ward(tmp_path: Path) -> Ward:
    (tmp_path / "ward").mkdir()
    return Ward(tmp_path / "ward")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Ward:
    (tmp_path / "elsewhere").mkdir()
    return Ward(tmp_path / "elsewhere")


@pytest.mark.parametrize(("connect", "stranger"), CASES, ids=named)
def test_what_lasts_is_told_with_its_cure_and_given_up_before_patience_ends(
    connect: Callable[..., None],
    stranger: Stranger,
    ward: Ward,
    elsewhere: Ward,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "_QUIET_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(retry, "_DISTRUSTED_SECONDS", 0.5)
    monkeypatch.setattr(retry, "_DISTRUSTED_TIMES", 3)
    reason, cure = LASTING[stranger]
    with (
        stranger(ward, elsewhere, CONNECTIONS[connect]) as (address, shown),
        capture_logs() as logs,
        pytest.raises(PeerUntrusted) as raised,
    ):
        connect(ward, address, shown, LONG)
    sentence = str(raised.value)
    assert reason in sentence
    assert cure in sentence
    assert "`cairn doctor`" in sentence
    assert f"{address} after 0.5 seconds" in sentence
    told = [line["trouble"] for line in logs if line["event"].startswith("cannot reach a peer")]
    assert told
    assert [line for line in told if not (reason in line and cure in line)] == []


@pytest.mark.parametrize(
    "stranger", [strangers.that_hangs_up, strangers.that_is_not_there], ids=named
)
@pytest.mark.parametrize("connect", CONNECTIONS, ids=named)
def test_what_passes_is_waited_for_to_the_end_of_patience(
    connect: Callable[..., None],
    stranger: Stranger,
    ward: Ward,
    elsewhere: Ward,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What forwards to a node that is being started takes connections, and ends them at once."""
    monkeypatch.setattr(retry, "_DISTRUSTED_SECONDS", 0.0)
    monkeypatch.setattr(retry, "_DISTRUSTED_TIMES", 1)
    with (
        stranger(ward, elsewhere, CONNECTIONS[connect]) as (address, shown),
        pytest.raises(
            Unavailable, match=r"after 2 seconds: (nothing listens|the peer ended)"
        ) as raised,
    ):
        connect(ward, address, shown, 2.0)
    assert type(raised.value) is Unavailable


@pytest.mark.parametrize("connect", [attend, join], ids=named)
def test_a_node_that_has_no_such_method_is_told_at_once(
    connect: Callable[..., None], ward: Ward
) -> None:
    """The aggregator's two ports have the same certificate, and every node answers about its health."""
    home = ward.home(AGGREGATOR)
    with OtherPort(home) as address, pytest.raises(CallerNotAllowed) as raised:
        connect(ward, address, home.certificate.read_bytes(), LONG)
    assert "does not serve what this node asks for" in str(raised.value)
    assert "`cairn doctor`" in str(raised.value)
