"""An owner that would be another, speak of another round, or be counted twice."""

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.hostile.checks import ONE_HOT, check_one_hot
from tests.hostile.owners import (
    DENIED,
    EXISTS,
    INVALID,
    NOT_FOUND,
    PRECONDITION,
    TURNS,
    Part,
    an_aggregator,
    ends_without,
    hot,
    joined_round,
    others_than,
    refuses_owner,
    refuses_update,
)
from tests.service.network import OWNERS, Network, OpenRound, refused


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    yield from an_aggregator(tmp_path_factory)


@pytest.fixture
def attacker() -> str:
    return next(TURNS)


@pytest.fixture
def opened(network: Network) -> OpenRound:
    return joined_round(network)


def test_the_same_update_a_hundred_times_counts_once(opened: OpenRound) -> None:
    receipts = {opened.push("alice", hot("alice")).SerializeToString() for _ in range(100)}
    assert len(receipts) == 1
    for owner in others_than("alice"):
        opened.push(owner, hot(owner))
    check_one_hot(opened.ends(), OWNERS)
    after = opened.push("alice", hot("alice"))  # the answer was lost, as it were
    assert after.SerializeToString() in receipts


@pytest.mark.parametrize("changes", [{"examples": 2}, {"metrics": {"loss": 1.0}}, {}])
def test_a_second_update_is_refused_and_the_first_counts(
    network: Network, attacker: str, opened: OpenRound, changes: dict[str, Any]
) -> None:
    first = opened.push(attacker, hot(attacker))
    other = hot(attacker) if changes else hot("nobody")
    with refuses_update(network, attacker, "CONFLICT", EXISTS):
        opened.push(attacker, other, **changes)
    assert opened.receipt(attacker) == first
    for owner in others_than(attacker):
        opened.push(owner, hot(owner))
    check_one_hot(opened.ends(), OWNERS)


def test_last_rounds_update_is_refused_in_the_next_and_after(
    network: Network, attacker: str
) -> None:
    job = network.job(schema=ONE_HOT)
    first = job.open(OWNERS)
    for owner in OWNERS:
        first.join(owner)
    for owner in others_than(attacker):
        first.push(owner, hot(owner))
    captured = first.parts(hot(attacker))
    first.decline(attacker, pb.REASON_STOPPING)
    released = first.ends().payload
    second = job.open(OWNERS, released, 2)
    for owner in OWNERS:
        second.join(owner)
    with refuses_update(network, attacker, "ROUND_ENDED", PRECONDITION):
        second.submit(attacker, captured)
    renamed = [Part(header=first.header(manifest_digest=second.digest)), *captured[1:]]
    with refuses_update(network, attacker, "BASE_MISMATCH"):
        second.submit(attacker, renamed)
    ends_without(second, attacker, give_up=False)


def test_an_update_for_another_jobs_round_is_refused(network: Network, opened: OpenRound) -> None:
    other = network.job(schema=ONE_HOT).open(["bob", "carol", "dave"])
    with refuses_update(network, "alice", "UNKNOWN_OWNER", DENIED):
        opened.push("alice", hot("alice"), manifest_digest=other.digest)
    with refuses_update(network, "alice", "NOT_FOUND", NOT_FOUND):
        opened.push("alice", hot("alice"), manifest_digest=sha256(b"no round").digest())
    with refuses_update(network, "alice", "MALFORMED"):
        opened.push("alice", hot("alice"), manifest_digest=b"short")
    ends_without(opened, "alice")


def test_an_update_that_was_trained_from_another_model_is_refused_for_good(
    network: Network, attacker: str, opened: OpenRound
) -> None:
    with refuses_update(network, attacker, "BASE_MISMATCH"):
        opened.push(attacker, hot(attacker), base_digest=ONE_HOT.digest(hot(attacker)))
    with refuses_update(network, attacker, "OUT_OF_TURN", PRECONDITION):
        opened.push(attacker, hot(attacker))
    ends_without(opened, attacker, give_up=False)


def fields_of(kind: Descriptor) -> Iterator[FieldDescriptor]:
    for field in kind.fields:
        yield field
        if field.message_type is not None:
            yield from fields_of(field.message_type)


def test_no_request_of_an_owner_can_name_an_owner() -> None:
    """So an owner is who its certificate says, and there is nothing that could say otherwise."""
    service = aggregator_pb2.DESCRIPTOR.services_by_name["IntakeService"]
    texts = {
        field.full_name
        for method in service.methods
        for field in fields_of(method.input_type)
        if field.type == FieldDescriptor.TYPE_STRING
    }
    assert texts == {
        "cairn.v1.JoinRoundRequest.software",
        "cairn.v1.Signed.type",
        "cairn.v1.UpdateHeader.MetricsEntry.key",
        "cairn.v1.GetReceiptRequest.MetricsEntry.key",
    }


def test_whatever_an_owner_pushes_is_its_own(network: Network, opened: OpenRound) -> None:
    """Alice sends bob's captured stream: it takes alice's place, and bob still has his."""
    captured = opened.parts(hot("bob"))
    opened.submit("alice", captured)
    body = opened.receipt("alice").body
    assert aggregator_pb2.Receipt.FromString(body).owner == "alice"
    with refuses_owner(network, "bob", "GetReceipt", NOT_FOUND, "NOT_FOUND"):
        opened.receipt("bob")
    for owner in others_than("alice"):
        opened.push(owner, hot(owner))
    updates = [hot("bob"), *(hot(owner) for owner in others_than("alice"))]
    total = np.sum([np.frombuffer(update, "<f4") for update in updates], axis=0)
    assert opened.ends().payload == (total / np.float32(5)).astype("<f4").tobytes()


def test_a_federation_of_two_is_refused_where_the_floor_is_three(network: Network) -> None:
    with refused(INVALID, "floor is 3", "COHORT_TOO_SMALL"):
        network.job(owners=["alice", "bob"])
    job = network.job(schema=ONE_HOT)
    with refused(INVALID, "below the floor of 3", "COHORT_TOO_SMALL"):
        job.open(["alice", "bob"])
    opened = job.open(["alice", "bob", "carol"])
    for owner in ("alice", "bob", "carol"):
        opened.join(owner)
    for owner in ("alice", "bob"):
        opened.push(owner, hot(owner))
    opened.decline("carol", pb.REASON_STOPPING)
    ended = opened.ends()
    assert (ended.reason, ended.payload) == ("BELOW_FLOOR", b"")


def test_nobody_gets_the_receipt_of_another(network: Network, opened: OpenRound) -> None:
    opened.push("alice", hot("alice"))
    for owner in others_than("alice"):
        with refuses_owner(network, owner, "GetReceipt", NOT_FOUND, "NOT_FOUND"):
            opened.receipt(owner)
    with refuses_owner(network, "mallory", "GetReceipt", DENIED, "UNKNOWN_OWNER"):
        opened.receipt("mallory")
    for owner in others_than("alice"):
        opened.push(owner, hot(owner))
    opened.ends()
    for owner in OWNERS:
        assert aggregator_pb2.Receipt.FromString(opened.receipt(owner).body).owner == owner


def test_an_owner_that_gives_up_after_it_joined_stays_out(
    network: Network, attacker: str, opened: OpenRound
) -> None:
    opened.decline(attacker, pb.REASON_STOPPING)
    with refuses_owner(network, attacker, "JoinRound", PRECONDITION, "OUT_OF_TURN"):
        opened.join(attacker)
    with refuses_update(network, attacker, "OUT_OF_TURN", PRECONDITION):
        opened.push(attacker, hot(attacker))
    ends_without(opened, attacker, give_up=False)


def test_an_update_that_was_accepted_cannot_be_taken_out_again(
    network: Network, attacker: str, opened: OpenRound
) -> None:
    opened.push(attacker, hot(attacker))
    with refuses_owner(network, attacker, "JoinRound", PRECONDITION, "OUT_OF_TURN"):
        opened.decline(attacker, pb.REASON_STOPPING)
    for owner in others_than(attacker):
        opened.push(owner, hot(owner))
    check_one_hot(opened.ends(), OWNERS)
