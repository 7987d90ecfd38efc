"""Transfers that break off in the middle: they go on where they were, and nothing counts twice."""

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from blake3 import blake3

from cairn.errors import Unavailable
from cairn.identity.names import Role
from cairn.model.safetensors_writer import ModelWriter
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.messages import job_spec_from_bytes
from cairn.protocol.statements import commitment_of
from cairn.runtime.clock import Clock
from cairn.runtime.timeouts import IDLE_SECONDS
from cairn.storage.database import StateDirectory
from cairn.transport.channel import dial
from cairn.transport.receiver import PayloadReceiver
from cairn.transport.retry import retry_while_unavailable
from cairn.transport.server import Server
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from cairn.v1.coordinator_pb2_grpc import add_InvitationServiceServicer_to_server
from coordinator.aggregator_client import AggregatorClient as Collector
from coordinator.invitation_service import InvitationService
from coordinator.owner_sessions import OwnerSessions
from owner_node.aggregator_client import AggregatorClient
from owner_node.coordinator_client import CoordinatorClient
from owner_node.event_log import log_event
from owner_node.invitation import Invited
from owner_node.receipts import Receipts
from owner_node.records.history import Pushed
from owner_node.records.ledger import OwnerLedger, round_facts
from owner_node.records.ledger_head import LedgerHeadTracker
from owner_node.training.supervisor import Trained
from owner_node.updates.prepare import DisclosureRules
from owner_node.updates.spool import UpdateSpool
from owner_node.upload import Uploader
from tests.proxy import Proxy, Way
from tests.scenarios.processes import free_port, until
from tests.service.network import FEDERATION, OWNERS, SECONDS, Job, Network, OpenRound, refused

ROW = 1 << 20
MODEL = Schema.of([TensorSpec("who", "F32", (len(OWNERS), ROW))])  # 20 MiB
SIZE = MODEL.total_bytes
BREAKS_AT = SIZE * 3 // 4


class Breaking(Proxy):
    """Breaks a connection off once, in the middle; those that come after it are left alone."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._breaks: tuple[Way, int, Callable[[], bool]] | None = None
        self._is_answered: Callable[[], bool] | None = None
        self.broken = threading.Event()

    def break_off(
        self, way: Way, after_bytes: int, are_there: Callable[[], bool] = lambda: True
    ) -> None:
        """Break off when so many more bytes have gone this way, and these are there.

        What is still on its way when a connection ends is lost, and how much that is differs.
        """
        self._breaks = way, way.bytes + after_bytes, are_there

    def lose_the_answer(self, is_answered: Callable[[], bool]) -> None:
        """Break off with the first bytes that come back once there is an answer."""
        self._is_answered = is_answered

    def _counted(self, data: bytes, way: Way) -> int:
        if way is self.received and self._is_answered is not None and self._is_answered():
            self._is_answered = None
            self.broken.set()
            return 0
        allowed = super()._counted(data, way)
        if self._breaks is not None and way is self._breaks[0] and way.bytes >= self._breaks[1]:
            until(self._breaks[2], "what has passed is there")
            self._breaks = None
            self.broken.set()
            return allowed - 1
        return allowed


def one_hot(owner: str) -> bytes:
    """An update that is 1 in the owner's own row: n times the average says who was counted."""
    values = np.zeros((len(OWNERS), ROW), "<f4")
    values[OWNERS.index(owner)] = 1
    return values.tobytes()


def counted_once(payload: bytes, *owners: str) -> None:
    """The average must be that of these owners' updates, bit by bit."""
    average = np.frombuffer(payload, "<f4").reshape(len(OWNERS), ROW)
    for name, row in zip(OWNERS, average, strict=True):
        share = np.float32(1 / len(owners)) if name in owners else np.float32(0)
        assert (row == share).all(), name


# Fetching the base.

PAYLOAD = np.random.default_rng(5).integers(0, 256, SIZE, np.uint8).tobytes()


@pytest.fixture
def base_at(network: Network) -> Iterator[str]:
    """A coordinator that offers the base."""
    service = InvitationService(FEDERATION, "job", ["alice"], OwnerSessions())
    service.offer(MODEL.digest(PAYLOAD), memoryview(PAYLOAD))
    listener = Server(network.identity("coordinator", Role.COORDINATOR), long_callers=4)
    listener.add(add_InvitationServiceServicer_to_server, service)
    address = f"localhost:{free_port()}"
    listener.start(address)
    yield address
    listener.stop(0.0)


@pytest.mark.parametrize("breaks", [1, 3])
def test_a_fetch_that_breaks_off_goes_on_from_where_it_was(
    network: Network, base_at: str, breaks: int
) -> None:
    into = memoryview(bytearray(SIZE))
    incoming = PayloadReceiver(SIZE, MODEL.hasher(), into)
    offsets = []

    def at_least(count: int) -> Callable[[], bool]:
        return lambda: incoming.offset >= count

    with Breaking(base_at) as proxy:
        channel = dial(proxy.address, network.identity("alice", Role.OWNER))
        client = CoordinatorClient(channel, lambda: None)
        for _ in range(breaks):
            half = incoming.offset + BREAKS_AT // breaks // 2
            proxy.break_off(proxy.received, BREAKS_AT // breaks, at_least(half))
            with pytest.raises(Unavailable):
                client.fetch(MODEL.digest(PAYLOAD), incoming, SECONDS)
            offsets.append(incoming.offset)
            assert into[: incoming.offset] == PAYLOAD[: incoming.offset]
        client.fetch(MODEL.digest(PAYLOAD), incoming, SECONDS)
        assert into == PAYLOAD
        assert proxy.connections == breaks + 1
        # Anew each time it would have been 1.75 of the model; the rest is what was under way.
        assert proxy.received.bytes < SIZE * 3 // 2
        channel.close()
    assert offsets == sorted(set(offsets))
    assert offsets[0] > 0
    assert offsets[-1] < SIZE


# Collecting a release.


@pytest.fixture(scope="module")
def released(network: Network) -> OpenRound:
    """A round of which everything was released."""
    opened = joined(network.job(schema=MODEL), "alice", "bob")
    for owner in ("alice", "bob"):
        opened.push(owner, one_hot(owner))
    opened.ends()
    return opened


def joined(job: Job, *cohort: str) -> OpenRound:
    opened = job.open(cohort)
    for owner in cohort:
        opened.join(owner)
    return opened


def collecting(network: Network, address: str) -> tuple[grpc.Channel, Collector]:
    channel = dial(address, network.identity("coordinator", Role.COORDINATOR))
    collector = Collector(channel, address, network.key, SECONDS, threading.Event())
    collector._epoch = 1  # as after its registration
    return channel, collector


def test_a_collection_that_breaks_off_goes_on_from_where_it_was(
    network: Network, released: OpenRound, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    begun = []

    def begin(schema: Schema) -> ModelWriter:
        begun.append(ModelWriter(path, schema))
        return begun[-1]

    def half_is_there() -> bool:
        return bool(begun) and begun[0].written >= BREAKS_AT // 2

    with Breaking(network.release_at) as proxy:
        channel, collector = collecting(network, proxy.address)
        proxy.break_off(proxy.received, BREAKS_AT, half_is_there)
        release = collector.collect(released.digest, MODEL, begin)
        assert proxy.broken.is_set()
        assert proxy.received.bytes < SIZE * 3 // 2
        channel.close()
    assert len(begun) == 1
    assert release.model is begun[0]
    release.model.keep()
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert blake3(path.read_bytes()).digest() == release.statement.release_digest
    counted_once(path.read_bytes()[-SIZE:], "alice", "bob")


def test_a_collection_that_is_given_up_leaves_nothing_behind(
    network: Network, released: OpenRound, tmp_path: Path
) -> None:
    stopping = threading.Event()
    with Breaking(network.release_at) as proxy:
        channel = dial(proxy.address, network.identity("coordinator", Role.COORDINATOR))
        collector = Collector(channel, proxy.address, network.key, SECONDS, stopping)
        collector._epoch = 1
        proxy.break_off(proxy.received, BREAKS_AT)
        stopping.set()
        with pytest.raises(Unavailable):
            collector.collect(
                released.digest, MODEL, lambda schema: ModelWriter(tmp_path / "model", schema)
            )
        channel.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("offset", [0, 1, ROW, SIZE - 1, SIZE])
def test_a_release_is_collected_from_any_of_its_bytes(released: OpenRound, offset: int) -> None:
    request = aggregator_pb2.CollectReleaseRequest(
        manifest_digest=released.digest, offset=offset, epoch=1
    )
    first, *rest = released.job.coordinator.CollectRelease(request, timeout=SECONDS)
    statement, payload = released.collect()
    assert (first.header.statement, first.header.total_bytes) == (statement, SIZE)
    assert b"".join(part.chunk for part in rest) == payload[offset:]


@pytest.mark.parametrize("offset", [SIZE + 1, 2**64 - 1])
def test_an_offset_behind_the_last_byte_is_refused(released: OpenRound, offset: int) -> None:
    request = aggregator_pb2.CollectReleaseRequest(
        manifest_digest=released.digest, offset=offset, epoch=1
    )
    with refused(grpc.StatusCode.INVALID_ARGUMENT, f"has {SIZE} bytes", "MALFORMED"):
        list(released.job.coordinator.CollectRelease(request, timeout=SECONDS))


# Pushing an update.


def invited_to(opened: OpenRound) -> Invited:
    return Invited(opened.manifest, opened.digest, job_spec_from_bytes(opened.job.body))


class Owner:
    """Alice, as her node pushes: over a proxy, with a ledger of her own."""

    def __init__(self, network: Network, proxy: Proxy, path: Path) -> None:
        self.channel = dial(proxy.address, network.identity("alice", Role.OWNER))
        self.state = StateDirectory(path / "state", "owner.sqlite")
        heads = LedgerHeadTracker(self.state, network.key, FEDERATION)
        self.aggregator = AggregatorClient(self.channel, network.key, "alice", heads)
        self.ledger = OwnerLedger(self.state, Clock())
        rules = {"task": DisclosureRules()}
        self.kept = UpdateSpool(self.state.path, self.ledger.past.may_leave_again, log_event)
        self.stopping, self.is_closed = threading.Event(), False
        receipts = Receipts(self.aggregator, self.ledger, log_event)
        whats = (self.aggregator, self.ledger, self.kept, receipts, rules)
        self._uploader = Uploader(*whats, lambda: "sha256:00", self.stopping, log_event)

    def push(self, opened: OpenRound, payload: bytes) -> None:
        """Push as after training, again and again where it breaks off."""
        invited, base = invited_to(opened), memoryview(opened.job.first_base)
        self.ledger.record("joined", round_facts(invited) | {"task": invited.job.task})
        trained = Trained(memoryview(payload), 1, {})
        self._uploader.push(invited, base, trained, time.monotonic() + SECONDS, lambda: None)

    def push_again(self, opened: OpenRound) -> bool:
        """Push what was recorded as sent before this owner was started."""
        return self._uploader.push_again(invited_to(opened), time.monotonic() + SECONDS)

    def facts(self, kind: str) -> list[dict[str, Any]]:
        return [entry.facts for entry in self.ledger._ledger.all() if entry.kind == kind]

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.channel.close()
            self.state.close()


@pytest.fixture
def proxy(network: Network) -> Iterator[Breaking]:
    with Breaking(network.intake_at) as proxy:
        yield proxy


@pytest.fixture
def alice(network: Network, proxy: Breaking, tmp_path: Path) -> Iterator[Owner]:
    owner = Owner(network, proxy, tmp_path)
    yield owner
    owner.close()


def accepted(network: Network, opened: OpenRound, owner: str) -> int:
    """How often the aggregator says that it has added an update of the owner."""
    name = opened.job.spec.name
    events = network.node.events("accepted")
    return sum((event["job"], event["owner"]) == (name, owner) for event in events)


def test_a_push_that_breaks_off_is_pushed_again_and_counted_once(
    network: Network, proxy: Breaking, alice: Owner
) -> None:
    opened = joined(network.job(schema=MODEL), "alice", "bob", "carol")
    proxy.break_off(proxy.sent, BREAKS_AT)
    alice.push(opened, one_hot("alice"))
    assert proxy.broken.is_set()
    assert proxy.sent.bytes > BREAKS_AT + SIZE
    (sent,) = alice.facts("sent")
    assert sent["payload_digest"] == MODEL.digest(one_hot("alice")).hex()
    assert len(alice.facts("receipt")) == 1
    assert accepted(network, opened, "alice") == 1
    for owner in ("bob", "carol"):
        opened.push(owner, one_hot(owner))
    ended = opened.ends()
    assert ended.statement.contributors == 3
    counted_once(ended.payload, "alice", "bob", "carol")


def test_a_push_that_an_owner_leaves_in_the_middle_goes_on_from_its_disk(
    network: Network, proxy: Breaking, alice: Owner, tmp_path: Path
) -> None:
    opened = joined(network.job(schema=MODEL), "alice", "bob")
    proxy.break_off(proxy.sent, BREAKS_AT)
    alice.stopping.set()  # so that it does not push again
    with pytest.raises(Unavailable):
        alice.push(opened, one_hot("alice"))
    alice.close()
    again = Owner(network, proxy, tmp_path)
    (file,) = again.kept.path.iterdir()
    assert file.read_bytes() == one_hot("alice")
    assert again.push_again(opened)
    assert accepted(network, opened, "alice") == 1
    opened.push("bob", one_hot("bob"))
    ended = opened.ends()
    assert commitment_of(opened.receipt("alice")) in ended.statement.commitments
    counted_once(ended.payload, "alice", "bob")
    again.close()


def test_a_push_whose_connection_only_its_owner_knows_to_be_gone_is_soon_replaced(
    network: Network, proxy: Breaking, alice: Owner
) -> None:
    opened = joined(network.job(schema=MODEL), "alice", "bob")
    payload = one_hot("alice")

    def give_up() -> None:
        pushed = Pushed(MODEL.digest(payload), 1, {}, bytes(32))
        with pytest.raises(Unavailable):
            alice.aggregator.submit(opened.header(), memoryview(payload), pushed, SECONDS)

    given_up = threading.Thread(target=give_up)
    given_up.start()
    until(lambda: proxy.sent.bytes > SIZE // 4, "the push is under way")
    proxy.stall()  # the aggregator hears no more, and is not told why

    def push_anew() -> bool:
        with suppress(grpc.RpcError):  # as long as the other is under way
            opened.push("alice", payload)
            return True
        return False

    until(push_anew, "the push is taken anew", IDLE_SECONDS / 2)
    opened.push("bob", one_hot("bob"))
    counted_once(opened.ends().payload, "alice", "bob")
    proxy.cut()
    proxy.resume()
    given_up.join(SECONDS)
    assert not given_up.is_alive()


def test_a_push_that_never_comes_again_is_not_counted(
    network: Network, proxy: Breaking, alice: Owner
) -> None:
    opened = joined(network.job(schema=MODEL), "alice", "bob", "carol")
    proxy.break_off(proxy.sent, BREAKS_AT)
    payload = one_hot("alice")
    pushed = Pushed(MODEL.digest(payload), 1, {}, bytes(32))
    with pytest.raises(Unavailable):
        alice.aggregator.submit(opened.header(), memoryview(payload), pushed, SECONDS)
    with refused(grpc.StatusCode.NOT_FOUND):
        opened.receipt("alice")
    opened.decline("alice", pb.REASON_STOPPING)
    for owner in ("bob", "carol"):
        opened.push(owner, one_hot(owner))
    counted_once(opened.ends().payload, "bob", "carol")


def test_after_a_lost_answer_the_receipt_is_found_and_the_update_counted_once(
    network: Network, proxy: Breaking, alice: Owner
) -> None:
    opened = joined(network.job(schema=MODEL), "alice", "bob")
    # The aggregator says that it has accepted an update before it answers.
    proxy.lose_the_answer(lambda: accepted(network, opened, "alice") > 0)
    alice.push(opened, one_hot("alice"))
    assert proxy.broken.is_set()
    assert proxy.sent.bytes < SIZE * 3 // 2  # it was not pushed again
    (kept,) = alice.facts("receipt")
    signed = pb.Signed.FromString(base64.b64decode(kept["receipt"]))
    assert signed == opened.receipt("alice")
    assert accepted(network, opened, "alice") == 1
    opened.push("bob", one_hot("bob"))
    ended = opened.ends()
    assert ended.statement.contributors == 2
    assert sha256(signed.body).digest() in ended.statement.commitments
    counted_once(ended.payload, "alice", "bob")


def test_a_push_whose_answer_was_lost_may_be_repeated_whole_and_is_counted_once(
    network: Network, proxy: Breaking, alice: Owner
) -> None:
    opened = joined(network.job(schema=MODEL), "alice", "bob")
    payload = one_hot("alice")
    pushed = Pushed(MODEL.digest(payload), 1, {}, bytes(32))
    header = opened.header()
    proxy.lose_the_answer(lambda: accepted(network, opened, "alice") > 0)
    with pytest.raises(Unavailable):
        alice.aggregator.submit(header, memoryview(payload), pushed, SECONDS)
    again = retry_while_unavailable(
        lambda: alice.aggregator.submit(header, memoryview(payload), pushed, SECONDS),
        "the aggregator",
        SECONDS,
        threading.Event(),
    )
    assert proxy.sent.bytes > 2 * SIZE
    assert again == alice.aggregator.receipt(opened.digest, [pushed]) == opened.receipt("alice")
    assert accepted(network, opened, "alice") == 1
    opened.push("bob", one_hot("bob"))
    counted_once(opened.ends().payload, "alice", "bob")
