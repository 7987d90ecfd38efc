"""What a round keeps of its accepted updates."""

import pytest

from aggregator_node.aggregation.mean import Mean
from aggregator_node.rounds.results import Accepted, AcceptedUpdates
from cairn.errors import Conflict, NotFound
from cairn.model.schema import Schema
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.statements import commitment_of
from cairn.v1 import round_pb2 as pb

RULE = Mean(Schema(()), Aggregation(), 2)


def update(name: str, *, payload: bytes = b"p", **metrics: float) -> Accepted:
    return Accepted(b"header", payload, pb.Signed(body=name.encode()), metrics)


def test_the_same_update_again_has_the_receipt_of_the_first_time() -> None:
    accepted = AcceptedUpdates()
    assert accepted.repeated("alice", update("a")) is None
    accepted.add("alice", update("a"))
    assert accepted.repeated("alice", update("signed anew")) == pb.Signed(body=b"a")
    with pytest.raises(Conflict):
        accepted.repeated("alice", update("a", payload=b"other"))
    assert accepted.repeated("bob", update("a", payload=b"other")) is None


def test_only_an_owner_whose_update_was_accepted_has_a_receipt() -> None:
    accepted = AcceptedUpdates()
    accepted.add("alice", update("a"))
    assert ("alice" in accepted, "bob" in accepted) == (True, False)
    assert accepted.receipt("alice").body == b"a"
    with pytest.raises(NotFound):
        accepted.receipt("bob")


def test_a_sealed_round_names_its_owners_and_hides_whose_commitment_is_whose() -> None:
    accepted = AcceptedUpdates()
    updates = {name: update(name) for name in ("carol", "alice", "bob")}
    for owner, each in updates.items():
        accepted.add(owner, each)
    sealed = accepted.sealed(RULE, dict.fromkeys(updates, 1), (("dave", pb.REASON_DEADLINE),))
    assert sealed.contributors == ("alice", "bob", "carol")
    assert sealed.commitments == tuple(sorted(commitment_of(u.receipt) for u in updates.values()))
    assert sealed.exclusions == (("dave", pb.REASON_DEADLINE),)


def test_metrics_count_as_much_as_the_updates_and_only_those_that_all_have() -> None:
    accepted = AcceptedUpdates()
    accepted.add("alice", update("a", loss=1.0, own=7.0))
    accepted.add("bob", update("b", loss=3.0))
    assert accepted.sealed(RULE, {"alice": 3, "bob": 1}, ()).metrics == {"loss": 1.5}
