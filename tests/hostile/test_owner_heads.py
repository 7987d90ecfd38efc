"""An owner that forges what the aggregator signed, to stop it, or speaks another version of the protocol."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import cairn
from aggregator_node.storage.rollback import EVIDENCE
from cairn.identity.signing_keys import load_signing_key
from cairn.protocol.messages import PROTOCOL
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.hostile.checks import ONE_HOT, check_one_hot
from tests.hostile.owners import (
    INVALID,
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
from tests.service.network import FEDERATION, OWNERS, SECONDS, Network, OpenRound, refused

HEAD, RECEIPT = "cairn.v1.LedgerHead", "cairn.v1.Receipt"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    yield from an_aggregator(tmp_path_factory)


@pytest.fixture
def attacker() -> str:
    return next(TURNS)


@pytest.fixture
def opened(network: Network) -> Iterator[OpenRound]:
    """A round; afterwards the aggregator must serve as before."""
    opened = joined_round(network)
    yield opened
    assert network.node.process.poll() is None
    assert not (network.state / EVIDENCE).exists()


def signed(key: Ed25519PrivateKey, kind: str, body: bytes) -> pb.Signed:
    """Sign as DSSE has it, written out here anew."""
    encoded = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(body), body)
    return pb.Signed(type=kind, body=body, signature=key.sign(encoded))


def head_of(federation: str = FEDERATION, number: int = 10**6, head: bytes = bytes(32)) -> bytes:
    return pb.LedgerHead(federation=federation, number=number, head=head).SerializeToString()


def own_key(network: Network) -> Ed25519PrivateKey:
    """The aggregator's, which no owner has: to sign what it never would."""
    return load_signing_key(network.directory / "aggregator/signing.key")


def other_key(_network: Network) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def with_a_bad_signature(network: Network) -> pb.Signed:
    good = signed(own_key(network), HEAD, head_of())
    flipped = bytes([good.signature[0] ^ 1]) + good.signature[1:]
    return pb.Signed(type=HEAD, body=good.body, signature=flipped)


def relabelled_receipt(network: Network) -> pb.Signed:
    receipt = signed(own_key(network), RECEIPT, head_of())
    return pb.Signed(type=HEAD, body=receipt.body, signature=receipt.signature)


def with_a_higher_number(network: Network) -> pb.Signed:
    """A head that the aggregator did sign, with its number raised."""
    opened = joined_round(network)
    true = opened.join("alice").ledger_head
    head = pb.LedgerHead.FromString(true.body)
    head.number += 1000
    return pb.Signed(type=HEAD, body=head.SerializeToString(), signature=true.signature)


FORGED: dict[str, Callable[[Network], pb.Signed]] = {
    "another key": lambda n: signed(other_key(n), HEAD, head_of()),
    "a higher number": with_a_higher_number,
    "a bad signature": with_a_bad_signature,
    "another federation": lambda n: signed(own_key(n), HEAD, head_of("elsewhere")),
    "no federation": lambda n: signed(own_key(n), HEAD, head_of("")),
    "a short head": lambda n: signed(own_key(n), HEAD, head_of(head=b"short")),
    "a receipt": lambda n: signed(own_key(n), RECEIPT, head_of()),
    "a relabelled receipt": relabelled_receipt,
    "no head": lambda n: signed(own_key(n), HEAD, b"\xff\xff"),
    "no signature": lambda _: pb.Signed(type=HEAD, body=head_of()),
    "nothing": lambda _: pb.Signed(),
    "a long type": lambda n: signed(own_key(n), "x" * 10_000, head_of()),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_head_of_the_ledger_does_not_stop_the_aggregator(
    network: Network, attacker: str, opened: OpenRound, what: str
) -> None:
    forged = FORGED[what](network)
    request = aggregator_pb2.JoinRoundRequest(
        manifest_digest=opened.digest, join=True, protocol=PROTOCOL, seen_head=forged
    )
    with refuses_owner(network, attacker, "JoinRound", INVALID, "MALFORMED"):
        network.intake(attacker).JoinRound(request, timeout=SECONDS)
    with refuses_update(network, attacker, "MALFORMED"):
        opened.push(attacker, hot(attacker), seen_head=forged)
    ends_without(opened, attacker)


def test_the_true_head_of_another_aggregator_does_not_stop_this_one(
    network: Network, attacker: str, opened: OpenRound, tmp_path: Path
) -> None:
    """Of a federation of the same name, whose ledger is longer or shorter."""
    other = Network(tmp_path, floor=3, lease_seconds=600)
    foreign = joined_round(other).join("alice").ledger_head
    other.stop()
    with refuses_update(network, attacker, "MALFORMED"):
        opened.push(attacker, hot(attacker), seen_head=foreign)
    ends_without(opened, attacker)


def test_the_head_that_another_owner_was_given_does_no_harm(
    network: Network, opened: OpenRound
) -> None:
    """It is the aggregator's own word, and true whoever repeats it; an older one is true as well."""
    heads = [opened.join(owner).ledger_head for owner in OWNERS]
    network.job(schema=ONE_HOT)  # the ledger goes on
    for owner, head in zip(OWNERS, reversed(heads), strict=True):
        opened.push(owner, hot(owner), seen_head=head)
    check_one_hot(opened.ends(), OWNERS)


def test_the_receipt_that_another_owner_was_given_is_of_no_use(
    network: Network, opened: OpenRound
) -> None:
    receipt = opened.push("alice", hot("alice"))
    with refuses_update(network, "bob", "MALFORMED"):
        opened.push("bob", hot("bob"), seen_head=receipt)
    with refuses_update(network, "bob", "MALFORMED"):
        opened.submit("bob", [Part(chunk=receipt.SerializeToString())])
    for owner in others_than("alice"):
        opened.push(owner, hot(owner))
    check_one_hot(opened.ends(), OWNERS)


@pytest.mark.parametrize("protocol", [0, PROTOCOL - 1, PROTOCOL + 1, 2**32 - 1])
def test_an_owner_of_another_version_is_told_both(
    network: Network, attacker: str, opened: OpenRound, protocol: int
) -> None:
    request = aggregator_pb2.JoinRoundRequest(
        manifest_digest=opened.digest, join=True, protocol=protocol, software="9.9.9"
    )
    stub = network.intake(attacker)
    with refuses_owner(network, attacker, "JoinRound", INVALID, "OTHER_VERSION"):
        stub.JoinRound(request, timeout=SECONDS)
    ours = f"Cairn {cairn.__version__}, which speaks version {PROTOCOL} "
    with refused(INVALID, ours):
        stub.JoinRound(request, timeout=SECONDS)
    with refused(INVALID, f"Cairn 9.9.9, which speaks version {protocol}:"):
        stub.JoinRound(request, timeout=SECONDS)
    ends_without(opened, attacker)
