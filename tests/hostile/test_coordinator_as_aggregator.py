"""Somebody else where the aggregator should be: an owner tells it nothing, and trains nothing for it.

The owner is a real process that dials through a proxy. What stands behind it ends the TLS connection under a
certificate that the federation's own authority has issued, as a middle that forwards would.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from cairn.identity.authority import Authority, Subject, issue, new_key, new_request
from cairn.identity.names import NodeName, Role
from tests.hostile.checks import opened_files
from tests.hostile.stage import Stage, fresh_base, manifest, signed
from tests.proxy import Proxy
from tests.scenarios.processes import until
from tests.service.network import FEDERATION, Credentials, Network

HANDSHAKE_BYTES = 4096  # of one connection that ends with it: more than a hello, less than a call


class Listening(grpc.GenericRpcHandler):
    """Remembers every call, and takes none."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def service(self, handler_call_details: Any) -> None:
        self.calls.append(handler_call_details.method)


@contextmanager
def listening(network: Network, pair: Credentials) -> Iterator[tuple[Proxy, Listening]]:
    """Somebody under this certificate, behind a proxy that counts."""
    heard = Listening()
    server = grpc.server(ThreadPoolExecutor(4), handlers=[heard])
    secrets = grpc.ssl_server_credentials([pair], network.root, require_client_auth=True)
    port = server.add_secure_port("localhost:0", secrets)
    server.start()
    try:
        with Proxy(f"localhost:{port}") as proxy:
            yield proxy, heard
    finally:
        server.stop(0).wait(5)


@contextmanager
def alice_dials(stage: Stage, proxy: Proxy, pinned: bytes | None = None) -> Iterator[None]:
    """Alice's process, started anew, dials the proxy for its aggregator, and has this certificate pinned."""
    config = stage.network.directory / "alice.toml"
    pin = stage.network.directory / "alice/aggregator.crt"
    text, certificate = config.read_text(), pin.read_bytes()
    assert stage.network.intake_at in text
    stage.alice.kill()
    config.write_text(text.replace(stage.network.intake_at, proxy.address))
    pin.write_bytes(pinned or certificate)
    try:
        stage.alice = stage.start_alice()
        yield
    finally:
        stage.alice.kill()
        config.write_text(text)
        pin.write_bytes(certificate)
        stage.alice = stage.start_alice()


def invited_in_vain(stage: Stage) -> str:
    """Invite alice to a good round; returns why it could not take part."""
    job, base = stage.job(), fresh_base()
    good = signed(stage, manifest(stage, job, base, lease_seconds=2))
    known = len(stage.entries("not accepted"))
    stage.invite(good, job.body)
    until(lambda: len(stage.entries("not accepted")) > known, "alice gives up")
    return str(stage.entries("not accepted")[known].facts["why"])


def another_leaf(network: Network) -> Credentials:
    """A second certificate of the aggregator's name, by the federation's own authority."""
    key_file = network.directory / "authority/authority.key"
    authority = Authority(network.root, key_file.read_bytes())
    subject = Subject(NodeName(FEDERATION, Role.AGGREGATOR, "aggregator"))
    key = new_key()
    return key, issue(authority, new_request(subject, key), subject, datetime.now(UTC))


@pytest.mark.parametrize(
    "whose", ["the coordinator's", "an owner's", "another leaf", "the old one"]
)
def test_an_owner_says_nothing_to_an_aggregator_that_is_not_the_pinned_one(
    stage: Stage, whose: str
) -> None:
    network = stage.network
    fresh = another_leaf(network)
    pair, pinned = {
        "the coordinator's": (network.credentials["coordinator"], None),
        "an owner's": (network.credentials["erin"], None),
        "another leaf": (fresh, None),
        "the old one": (network.credentials["aggregator"], fresh[1]),
    }[whose]
    before = [stage.entries("joined"), stage.entries("sent"), list(stage.coordinator.fetched)]
    with (
        listening(network, pair) as (proxy, heard),
        alice_dials(stage, proxy, pinned),
        opened_files(stage.data) as opened,
    ):
        assert invited_in_vain(stage).startswith("gave up on the aggregator")
        assert opened() == []
        assert heard.calls == []
        assert proxy.connections > 0
        assert proxy.sent.bytes < HANDSHAKE_BYTES * proxy.connections
    after = [stage.entries("joined"), stage.entries("sent"), list(stage.coordinator.fetched)]
    assert after == before


def test_whoever_listens_hears_an_owner_where_the_certificate_is_the_pinned_one(
    stage: Stage,
) -> None:
    """The positive control of the test above."""
    pair = stage.network.credentials["aggregator"]
    with listening(stage.network, pair) as (proxy, heard), alice_dials(stage, proxy):
        job, base = stage.job(), fresh_base()
        stage.invite(signed(stage, manifest(stage, job, base, lease_seconds=2)), job.body)
        until(lambda: "/cairn.v1.IntakeService/JoinRound" in heard.calls, "alice calls")
