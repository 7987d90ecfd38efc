"""The line in which owners wait to push: nobody is refused, nobody is overtaken, nobody waits for ever.

The model is so large that only as many updates are under way as the aggregator's file says.
"""

import itertools
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from cairn.model.schema import Schema, TensorSpec
from cairn.storage.database import StateDirectory
from cairn.transport.channel import dial
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from owner_node.aggregator_client import AggregatorClient
from owner_node.records.history import Pushed
from owner_node.records.ledger_head import LedgerHeadTracker
from tests.chaos.puppet import LEASE_SECONDS, Puppet
from tests.proxy import Proxy
from tests.scenarios.processes import until
from tests.service.network import (
    CHUNK,
    FEDERATION,
    OWNERS,
    SECONDS,
    Job,
    Network,
    OpenRound,
    refused,
)

Part = aggregator_pb2.SubmitUpdateRequest

MEGABYTES = 150  # of the aggregator: for one round of a LARGE model, and not for two
LARGE = Schema.of([TensorSpec("t", "F32", (8_500_000,))])  # 34 MB: two are more than 64 MiB
TOO_LARGE = Schema.of([TensorSpec("t", "F32", (20_000_000,))])  # 80 MB, and 160 of sums


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """An aggregator that takes one large update at a time."""
    directory = tmp_path_factory.mktemp("queue")
    network = Network(directory, updates_in_flight=1, memory_megabytes=MEGABYTES)
    yield network
    network.stop()


def constant(value: float) -> bytes:
    return np.full(8_500_000, value, "<f4").tobytes()


def whole(opened: OpenRound, payload: bytes, then: Event | None = None) -> Iterator[Part]:
    """The stream of an update; with an event it stops before its last part until that is set."""
    yield Part(header=opened.header())
    for begin in range(0, len(payload), CHUNK):
        yield Part(chunk=payload[begin : begin + CHUNK])
    if then is not None:
        assert then.wait(SECONDS)
    digest = opened.job.spec.schema.digest(payload)
    yield Part(commit=aggregator_pb2.UpdateCommit(payload_digest=digest))


class Pushing:
    """One owner's push, under way in a thread of gRPC's."""

    def __init__(self, opened: OpenRound, owner: str, payload: bytes) -> None:
        self.opened = opened
        self.owner = owner
        self.goes_on = Event()
        self._has_sent_all = Event()
        stub = opened.job.network.intake(owner)
        self.call = stub.SubmitUpdate.future(self._parts(payload), timeout=SECONDS)

    def _parts(self, payload: bytes) -> Iterator[Part]:
        parts = list(whole(self.opened, payload))
        yield from parts[:-1]
        # gRPC asks for the next part once the last was let through: the aggregator takes them in.
        self._has_sent_all.set()
        if self.goes_on.wait(SECONDS):
            yield parts[-1]

    def has_the_buffer(self) -> "Pushing":
        """Return when all but the last part was taken in."""
        assert self._has_sent_all.wait(SECONDS)
        return self

    def waits_at(self, place: int) -> "Pushing":
        """Return when it stands at this place in line."""
        until(lambda: self.place == place, f"{self.owner} is at place {place}", SECONDS)
        assert not self._has_sent_all.is_set()
        return self

    @property
    def place(self) -> int:
        return self.opened.join(self.owner).queue_place

    def is_accepted(self) -> None:
        self.goes_on.set()
        assert self.call.result().receipt.body


@pytest.fixture
def opened(network: Network) -> Iterator[OpenRound]:
    """A round of four who have joined; it is over when the test is."""
    opened = joined(network.job(schema=LARGE), OWNERS[:4])
    yield opened
    with suppress(grpc.RpcError):  # it was released
        opened.abort()


def joined(job: Job, cohort: Sequence[str]) -> OpenRound:
    opened = job.open(cohort)
    for owner in cohort:
        assert opened.join(owner).queue_place == 0
    return opened


def test_an_owner_node_that_waits_in_line_sends_nothing_of_its_update(
    network: Network, opened: OpenRound, tmp_path: Path
) -> None:
    """What waits does so in the owner's memory, and not in the aggregator's."""
    alice = Pushing(opened, "alice", constant(1)).has_the_buffer()
    update = constant(2)
    pushed = Pushed(LARGE.digest(update), 1, {}, bytes(32))
    state = StateDirectory(tmp_path / "state", "owner.sqlite")
    with Proxy(network.intake_at) as proxy, ThreadPoolExecutor(1) as pool:
        channel = dial(proxy.address, network.identity("bob"))
        heads = LedgerHeadTracker(state, network.key, FEDERATION)
        bob = AggregatorClient(channel, network.key, "bob", heads)
        bob.join(opened.digest)
        header = opened.header()
        receipt = pool.submit(bob.submit, header, memoryview(update), pushed, SECONDS)
        until(lambda: opened.join("bob").queue_place == 1, "bob waits in line")
        carol = Pushing(opened, "carol", constant(4)).waits_at(2)
        assert proxy.sent.bytes < CHUNK // 4
        alice.is_accepted()
        assert receipt.result(SECONDS) == opened.receipt("bob")
        assert proxy.sent.bytes > len(update)
        channel.close()
    carol.is_accepted()
    state.close()


@pytest.mark.parametrize("updates_in_flight", [1, 2])
def test_owners_that_push_at_the_same_time_are_all_accepted(
    tmp_path: Path, updates_in_flight: int
) -> None:
    limits = {"updates_in_flight": updates_in_flight, "memory_megabytes": MEGABYTES}
    network = Network(tmp_path, **limits)
    opened = joined(network.job(schema=LARGE), OWNERS)
    updates = {owner: constant(2.0**k) for k, owner in enumerate(OWNERS)}
    calls = [Pushing(opened, owner, updates[owner]) for owner in OWNERS]
    for call in calls:
        call.goes_on.set()
    for call in calls:
        call.is_accepted()
    ended = opened.ends()
    assert ended.statement.contributors == 5
    assert ended.payload == constant(float(np.float32((1 + 2 + 4 + 8 + 16) / 5)))
    assert not network.node.events("refused")
    network.stop()


def test_who_waits_is_told_its_place_and_is_served_in_that_order(opened: OpenRound) -> None:
    alice = Pushing(opened, "alice", constant(1)).has_the_buffer()
    waiting = [
        Pushing(opened, owner, constant(2.0**place)).waits_at(place)
        for place, owner in enumerate(OWNERS[1:4], start=1)
    ]
    assert [alice.place, *(push.place for push in waiting)] == [0, 1, 2, 3]
    alice.is_accepted()
    for number, push in enumerate(waiting):
        push.has_the_buffer()
        left = len(waiting) - number - 1
        assert [later.place for later in waiting[number:]] == list(range(left + 1))
        push.is_accepted()
    assert opened.ends().payload == constant((1 + 2 + 4 + 8) / 4)


def test_an_owner_that_waits_and_breaks_off_gives_its_place_up_and_may_come_again(
    opened: OpenRound,
) -> None:
    alice = Pushing(opened, "alice", constant(1)).has_the_buffer()
    bob = Pushing(opened, "bob", constant(2)).waits_at(1)
    carol = Pushing(opened, "carol", constant(4)).waits_at(2)
    dave = Pushing(opened, "dave", constant(8)).waits_at(3)
    bob.call.cancel()
    carol.waits_at(1)
    dave.waits_at(2)
    until(lambda: bob.place == 0, "bob is out of the line")
    again = Pushing(opened, "bob", constant(2)).waits_at(3)
    for push in (alice, carol, dave, again):
        push.has_the_buffer().is_accepted()
    ended = opened.ends()
    assert ended.payload == constant((1 + 2 + 4 + 8) / 4)
    assert ended.exclusions == {}


def test_an_owner_that_breaks_off_with_the_buffer_lets_the_next_go_on(opened: OpenRound) -> None:
    alice = Pushing(opened, "alice", constant(1000)).has_the_buffer()
    others = [
        Pushing(opened, owner, constant(2.0**place)).waits_at(place)
        for place, owner in enumerate(OWNERS[1:4], start=1)
    ]
    alice.call.cancel()
    for push in others:
        push.has_the_buffer().is_accepted()
    opened.decline("alice", pb.REASON_STOPPING)
    ended = opened.ends()
    assert ended.payload == constant(float(np.float32((2 + 4 + 8) / 3)))
    assert ended.exclusions == {"alice": "STOPPING"}


def test_an_owner_that_has_declined_does_not_push_when_its_turn_comes(opened: OpenRound) -> None:
    alice = Pushing(opened, "alice", constant(1)).has_the_buffer()
    bob = Pushing(opened, "bob", constant(1000)).waits_at(1)
    opened.decline("bob", pb.REASON_STOPPING)
    alice.is_accepted()
    bob.goes_on.set()
    with refused(grpc.StatusCode.FAILED_PRECONDITION):
        bob.call.result()
    for owner, value in (("carol", 2), ("dave", 3)):
        Pushing(opened, owner, constant(value)).is_accepted()
    ended = opened.ends()
    assert ended.payload == constant(2)
    assert ended.exclusions == {"bob": "STOPPING"}


def test_at_the_deadline_those_who_still_wait_are_left_out(tmp_path: Path) -> None:
    network = Puppet(tmp_path, updates_in_flight=1, memory_megabytes=MEGABYTES)
    opened = joined(network.job(schema=LARGE, deadline=LEASE_SECONDS - 1), OWNERS)
    for owner, value in (("alice", 1), ("bob", 2)):
        Pushing(opened, owner, constant(value)).is_accepted()
    carol = Pushing(opened, "carol", constant(1000)).has_the_buffer()
    dave = Pushing(opened, "dave", constant(1000)).waits_at(1)
    erin = Pushing(opened, "erin", constant(1000)).waits_at(2)
    network.advance(LEASE_SECONDS - 1)
    ended = opened.ends()
    assert ended.payload == constant(1.5)
    assert ended.exclusions == dict.fromkeys(["carol", "dave", "erin"], "DEADLINE")
    for push in (carol, dave, erin):
        push.goes_on.set()
        with pytest.raises(grpc.RpcError) as caught:
            push.call.result()
        error: Any = caught.value
        assert error.code() in {
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.FAILED_PRECONDITION,
        }
        with refused(grpc.StatusCode.NOT_FOUND):
            opened.receipt(push.owner)
    network.stop()


def test_an_aborted_round_sends_those_who_wait_away(opened: OpenRound) -> None:
    alice = Pushing(opened, "alice", constant(1)).has_the_buffer()
    bob = Pushing(opened, "bob", constant(1)).waits_at(1)
    opened.abort()
    for push in (alice, bob):
        until(push.call.done, f"{push.owner}'s push is over")
        assert push.call.code() is not grpc.StatusCode.OK
        push.goes_on.set()


def test_a_round_that_can_never_fit_is_refused_when_it_is_opened(network: Network) -> None:
    job = network.job(schema=TOO_LARGE)
    for _ in range(2):
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "memory_megabytes", "TOO_MUCH"):
            job.open()
    assert job.register().last_round == 0


def test_a_round_that_has_to_wait_for_anothers_memory_can_be_opened_when_that_is_over(
    network: Network,
) -> None:
    first = network.job(schema=LARGE).open()
    job = network.job(schema=LARGE)
    with refused(grpc.StatusCode.UNAVAILABLE, "lent to other rounds", "TOO_MUCH"):
        job.open()
    small = network.job()  # of 16 bytes
    small.open().abort()
    first.abort()
    second = job.open()
    assert second.manifest.round == 1
    second.abort()


def test_a_coordinator_that_waits_for_memory_is_served_before_one_that_has_its_share(
    network: Network,
) -> None:
    """Else the other could open its next round as soon as one has ended, and so keep the memory for ever."""
    half = Schema.of([TensorSpec("t", "F32", (4_500_000,))])  # with three buffers, below 75 MiB
    greedy = [network.job(schema=half, floor=2).open() for _ in range(2)]
    patient = network.job(schema=half, coordinator="rival")
    with refused(grpc.StatusCode.UNAVAILABLE, "another coordinator", "TOO_MUCH"):
        patient.open()
    greedy.pop().abort()
    more = network.job(schema=half)
    with refused(grpc.StatusCode.UNAVAILABLE, "another coordinator", "TOO_MUCH"):
        more.open()
    theirs = patient.open()
    greedy.pop().abort()
    ours = more.open()
    for opened in (theirs, ours):
        opened.abort()


@pytest.mark.parametrize("order", ["lightest first", "heaviest first"])
def test_updates_that_are_held_back_for_their_weight_hold_up_no_line(
    network: Network, order: str
) -> None:
    """The aggregator lends one buffer at a time: if the held one were that, nobody else could push."""
    weights = {"alice": 1000, "bob": 100, "carol": 10, "dave": 1}
    job = network.job(schema=LARGE, weighting=pb.WEIGHTING_EXAMPLES, examples=(1, 1000))
    opened = joined(job, OWNERS[:4])
    for owner in sorted(weights, key=weights.__getitem__, reverse=order == "heaviest first"):
        opened.push(owner, constant(float(weights[owner])), examples=weights[owner])
    mean = Fraction(1 + 10 * 10 + 100 * 100 + 110 * 1000, 1 + 10 + 100 + 110)  # alice counts 110
    assert opened.ends().payload == constant(float(nearest(mean, "<f4")))


def nearest(value: Fraction, dtype: str) -> NDArray[Any]:
    """The float of this type next to an exact value, ties to even."""
    if dtype == "<f8":
        return np.array(float(value), dtype)  # a quotient of whole numbers is rounded once
    (guess,) = struct.unpack("<f", struct.pack("<f", float(value)))
    near = [np.nextafter(np.float32(guess), np.float32(way)) for way in (-np.inf, guess, np.inf)]
    best = min(near, key=lambda f: (abs(Fraction(float(f)) - value), int(f.view(np.int32)) & 1))
    return np.array(best, dtype)


def values_that_cancel(dtype: str) -> NDArray[Any]:
    """For each of four owners values whose sum in floating point depends on its order."""
    generator = np.random.default_rng(4)
    exponents = generator.integers(-20, 20, (4, 400))
    values = (generator.standard_normal((4, 400)) * 2.0**exponents).astype(dtype)
    values[1, ::4] = -values[0, ::4]  # which leaves what the others have
    values[2, 1::4] = -values[3, 1::4]
    values[3, 2::4] = values[2, 2::4] / 2**25  # half a unit in the last place of a binary32
    return values


EXACT = Schema.of([TensorSpec("d", "F64", (400,)), TensorSpec("s", "F32", (400,))])


@pytest.fixture(scope="module")
def exact() -> tuple[list[bytes], bytes]:
    """Four updates, and their mean by exact arithmetic, each element rounded once."""
    doubles, singles = values_that_cancel("<f8"), values_that_cancel("<f4")
    updates = [d.tobytes() + s.tobytes() for d, s in zip(doubles, singles, strict=True)]
    means = [
        nearest(sum(map(Fraction, column.tolist()), Fraction(0)) / 4, values.dtype.str).tobytes()
        for values in (doubles, singles)
        for column in values.T
    ]
    return updates, b"".join(means)


def test_the_sums_of_the_test_depend_on_the_order_in_floating_point() -> None:
    """The control: plain summation gives different means of these updates."""
    for dtype in ("<f8", "<f4"):
        values = values_that_cancel(dtype)
        orders = itertools.permutations(range(4))
        sums = {np.add.reduce(values[list(order)]).tobytes() for order in orders}
        assert len(sums) > 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_the_average_has_the_same_bits_in_every_order_of_arrival(
    network: Network, exact: tuple[list[bytes], bytes], order: tuple[int, ...]
) -> None:
    updates, mean = exact
    opened = joined(network.job(schema=EXACT), OWNERS[:4])
    for number in order:
        opened.push(OWNERS[number], updates[number])
    assert opened.ends().payload == mean


def test_the_average_has_the_same_bits_when_all_arrive_at_once(
    network: Network, exact: tuple[list[bytes], bytes]
) -> None:
    updates, mean = exact
    for _ in range(5):
        opened = joined(network.job(schema=EXACT), OWNERS[:4])
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(opened.push, OWNERS[:4], updates))
        assert opened.ends().payload == mean
