"""Whether the ledger still holds every head that was signed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_node.storage.rollback import EVIDENCE, RollbackDetector
from aggregator_node.storage.store import Store
from cairn.errors import InvalidMessage, UsageError, WrongState
from cairn.protocol.statements import HEAD, MANIFEST, sign, verified_head
from cairn.runtime.clock import Clock
from cairn.v1 import round_pb2 as pb

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "state", Clock())
    yield store
    store.close()


@pytest.fixture
def stops() -> list[bool]:
    return []


@pytest.fixture
def rollback(store: Store, stops: list[bool]) -> RollbackDetector:
    return RollbackDetector("clinics", store, KEY, lambda: stops.append(True))


def head(number: int, head: bytes, federation: str = "clinics") -> pb.Signed:
    message = pb.LedgerHead(federation=federation, number=number, head=head)
    return sign(KEY, HEAD, message.SerializeToString())


def test_the_signed_head_follows_the_ledger(store: Store, rollback: RollbackDetector) -> None:
    for number in range(3):
        signed = verified_head(KEY.public_key(), rollback.head())
        assert (signed.number, signed.head) == (number, store.ledger_head()[1])
        assert (signed.federation, rollback.head()) == ("clinics", rollback.head())
        store.append("open", {"round": number})


def test_every_head_that_the_ledger_had_is_good_for_ever(
    store: Store, rollback: RollbackDetector, stops: list[bool]
) -> None:
    seen = [rollback.head()]
    for number in range(3):
        store.append("open", {"round": number})
        seen.append(rollback.head())
    for one in seen:
        rollback.check(one)
    assert not stops
    assert not (store.path / EVIDENCE).exists()


@pytest.mark.parametrize("number", [0, 1, 2, 3, 2**63 - 1])
def test_a_head_that_the_ledger_does_not_hold_stops_the_node(
    store: Store, rollback: RollbackDetector, stops: list[bool], number: int
) -> None:
    store.append("open", {"round": 1})
    store.append("abort", {"round": 1})
    with pytest.raises(WrongState, match="was replaced") as caught:
        rollback.check(head(number, b"\x07" * 32))
    assert caught.value.reason == pb.REASON_ROLLED_BACK
    assert (stops, rollback.rolled_back) == ([True], True)
    with pytest.raises(WrongState):
        rollback.check(rollback.head())  # from then on nobody is served
    with pytest.raises(UsageError, match="behind a head"):
        RollbackDetector("clinics", store, KEY, lambda: None)


def test_when_the_ledger_is_back_the_node_starts_and_forgets_the_evidence(
    store: Store, rollback: RollbackDetector
) -> None:
    store.append("open", {"round": 1})
    newest = rollback.head()
    store._db.execute("DELETE FROM ledger")
    with pytest.raises(WrongState):
        rollback.check(newest)
    with pytest.raises(UsageError):
        RollbackDetector("clinics", store, KEY, lambda: None)
    store._db.execute(
        "INSERT INTO ledger VALUES (1, 'open', x'7b7d', ?)",
        (pb.LedgerHead.FromString(newest.body).head,),
    )
    RollbackDetector("clinics", store, KEY, lambda: None).check(newest)
    assert not (store.path / EVIDENCE).exists()


@pytest.mark.parametrize("text", ["", "{}", '{"seen_head": 7}', '{"seen_head": "eHh4"}', "[]"])
def test_evidence_that_cannot_be_read_does_not_let_the_node_start(store: Store, text: str) -> None:
    (store.path / EVIDENCE).write_text(text)
    with pytest.raises(UsageError, match="cannot be read"):
        RollbackDetector("clinics", store, KEY, lambda: None)


def test_what_the_aggregator_did_not_sign_as_a_head_stops_nothing(
    store: Store, rollback: RollbackDetector, stops: list[bool]
) -> None:
    newer = head(9, bytes(32))
    other = Ed25519PrivateKey.generate()
    for forged in (
        sign(other, HEAD, newer.body),
        sign(KEY, MANIFEST, newer.body),
        pb.Signed(type=HEAD, body=newer.body),
        head(9, b"short"),
        head(9, bytes(32), federation="elsewhere"),
    ):
        with pytest.raises(InvalidMessage):
            rollback.check(forged)
    assert not stops
    assert not (store.path / EVIDENCE).exists()
