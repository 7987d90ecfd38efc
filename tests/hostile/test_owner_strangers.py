"""Who is no owner of the round: another role, another authority, off the roster, outside the cohort."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import grpc
import pytest

from cairn.v1 import round_pb2 as pb
from tests.hostile.checks import check_one_hot, state_digest, written_refusals
from tests.hostile.owners import (
    DENIED,
    TURNS,
    Part,
    an_aggregator,
    average_of,
    hot,
    joined_round,
    others_than,
    refuses_owner,
)
from tests.service.network import OWNERS, SECONDS, Network, OpenRound, refused


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    yield from an_aggregator(tmp_path_factory)


@pytest.fixture
def attacker() -> str:
    return next(TURNS)


@pytest.fixture
def opened(network: Network) -> OpenRound:
    return joined_round(network)


@pytest.mark.parametrize(
    "who", ["coordinator", "rival", "aggregator", "neighbour", "nameless", "lapsed"]
)
def test_a_certificate_that_is_no_owners_pushes_nothing(
    network: Network, opened: OpenRound, who: str
) -> None:
    before = state_digest(network.state)
    calls: dict[str, Callable[[], object]] = {
        "JoinRound": lambda: opened.join(who),
        "SubmitUpdate": lambda: opened.push(who, hot("alice")),
        "GetReceipt": lambda: opened.receipt(who),
    }
    for method, call in calls.items():
        if who == "lapsed":  # it does not get through the handshake
            with refused(grpc.StatusCode.UNAVAILABLE):
                call()
            continue
        with refused(DENIED, reason="NOT_ALLOWED"):
            call()
        assert ("NOT_ALLOWED", method) in {(r, m) for _, m, r in written_refusals(network.state)}
    assert state_digest(network.state) == before
    for owner in OWNERS:
        opened.push(owner, hot(owner))
    check_one_hot(opened.ends(), OWNERS)


@pytest.mark.parametrize("who", ["stranger", "nobody"])
def test_another_authoritys_certificate_or_none_gets_no_connection(
    opened: OpenRound, who: str
) -> None:
    with refused(grpc.StatusCode.UNAVAILABLE):
        opened.push(who, hot("alice"))


def test_an_owner_that_is_certified_and_not_on_the_roster_gets_nothing(
    network: Network, opened: OpenRound
) -> None:
    calls: dict[str, Callable[[], object]] = {
        "JoinRound": lambda: opened.join("mallory"),
        "SubmitUpdate": lambda: opened.push("mallory", hot("alice")),
        "GetReceipt": lambda: opened.receipt("mallory"),
    }
    for method, call in calls.items():
        with refuses_owner(network, "mallory", method, DENIED, "UNKNOWN_OWNER"):
            call()


def test_an_owner_outside_the_cohort_gets_nothing(network: Network, attacker: str) -> None:
    opened = joined_round(network, cohort=others_than(attacker))
    with refuses_owner(network, attacker, "JoinRound", DENIED, "UNKNOWN_OWNER"):
        opened.decline(attacker, pb.REASON_STOPPING)
    calls: dict[str, Callable[[], object]] = {
        "JoinRound": lambda: opened.join(attacker),
        "SubmitUpdate": lambda: opened.push(attacker, hot(attacker)),
        "GetReceipt": lambda: opened.receipt(attacker),
    }
    for method, call in calls.items():
        with refuses_owner(network, attacker, method, DENIED, "UNKNOWN_OWNER"):
            call()
    for owner in others_than(attacker):
        opened.push(owner, hot(owner))
    assert opened.ends().payload == average_of(others_than(attacker))


def test_an_owner_that_is_removed_while_it_pushes_is_not_counted(tmp_path: Path) -> None:
    network = Network(tmp_path, floor=3, lease_seconds=600)
    opened = joined_round(network)
    header, chunk, last = opened.parts(hot("erin"))
    begun, goes_on = Event(), Event()

    def slow() -> Iterator[Part]:
        yield header
        yield chunk
        begun.set()
        goes_on.wait(SECONDS)
        yield last

    push = network.intake("erin").SubmitUpdate.future(slow(), timeout=SECONDS)
    assert begun.wait(SECONDS)
    config = network.directory / "aggregator.toml"
    text = config.read_text()
    removed = re.sub(r',?\s*"erin"', "", text)
    assert removed != text
    config.write_text(removed)
    goes_on.set()
    with refused(DENIED, "not on the roster", "UNKNOWN_OWNER"):
        push.result()
    with refuses_owner(network, "erin", "JoinRound", DENIED, "UNKNOWN_OWNER"):
        opened.join("erin")
    with refuses_owner(network, "erin", "GetReceipt", DENIED, "UNKNOWN_OWNER"):
        opened.receipt("erin")
    for owner in others_than("erin"):
        opened.push(owner, hot(owner))
    # Erin cannot even decline: the round ends at its deadline, or when the coordinator ends it.
    assert network.node.events("owner removed from the roster")
    assert not [e for e in network.node.events("accepted") if e["owner"] == "erin"]
    opened.abort()
    network.stop()
