"""The aggregator's ledger as an owner has seen it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cairn.errors import InvalidMessage, UsageError
from cairn.protocol.statements import HEAD, sign
from cairn.storage.database import StateDirectory
from cairn.v1 import round_pb2 as pb
from owner_node.records.ledger_head import LedgerHeadTracker

KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    opened = StateDirectory(tmp_path / "state", "owner.sqlite")
    yield opened
    opened.close()


def head(
    number: int, letter: bytes = b"a", federation: str = "clinics", key: Ed25519PrivateKey = KEY
) -> pb.Signed:
    message = pb.LedgerHead(federation=federation, number=number, head=letter * 32)
    return sign(key, HEAD, message.SerializeToString())


def tracker(state: StateDirectory) -> LedgerHeadTracker:
    return LedgerHeadTracker(state, KEY.public_key(), "clinics")


def test_it_keeps_the_furthest_head_also_over_a_restart(state: StateDirectory) -> None:
    first = tracker(state)
    assert first.seen() is None
    for number in (3, 3, 8):
        first.note(head(number))
    assert first.seen() == head(8)
    assert tracker(state).seen() == head(8)


@pytest.mark.parametrize("shown", [head(7), head(8, b"b"), head(0, b"\0")])
def test_a_ledger_that_went_back_or_elsewhere_is_found_out(
    state: StateDirectory, shown: pb.Signed
) -> None:
    tracker(state).note(head(8))
    after = tracker(state)
    with pytest.raises(InvalidMessage) as refused:
        after.note(shown)
    assert refused.value.reason == pb.REASON_ROLLED_BACK
    assert after.seen() == head(8)


@pytest.mark.parametrize(
    "shown",
    [
        head(9, federation="elsewhere"),
        head(9, key=Ed25519PrivateKey.generate()),
        pb.Signed(),
    ],
)
def test_a_head_that_is_not_this_aggregators_is_not_kept(
    state: StateDirectory, shown: pb.Signed
) -> None:
    kept = tracker(state)
    with pytest.raises(InvalidMessage):
        kept.note(shown)
    assert kept.seen() is None


def test_a_state_of_another_aggregator_is_named_at_the_start(state: StateDirectory) -> None:
    tracker(state).note(head(8))
    with pytest.raises(UsageError, match="keeps a head of another aggregator's ledger"):
        LedgerHeadTracker(state, Ed25519PrivateKey.generate().public_key(), "clinics")
