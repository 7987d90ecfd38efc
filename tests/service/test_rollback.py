"""A state directory that is replaced by an older or another copy: the aggregator stops and says so."""

import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cairn.protocol.aggregation import Aggregation
from cairn.protocol.messages import PROTOCOL
from cairn.protocol.statements import HEAD, sign
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.scenarios.processes import Node
from tests.service.network import FEDERATION, SECONDS, Job, Network, OpenRound, refused
from tests.warm.start import BIN

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
UPDATES = {"alice": bytes([0, 0, 128, 63] * 4), "bob": bytes(16)}  # ones and zeros
HALVES = bytes([0, 0, 0, 63] * 4)


class Vault:
    """An aggregator whose state directory is kept and put back while it is stopped."""

    def __init__(self, directory: Path) -> None:
        self.network = Network(directory)
        self.copies = directory / "copies"

    def stop(self) -> None:
        self.network.node.send(signal.SIGTERM)
        assert self.network.node.ends() == 0

    def start(self, *jobs: Job) -> None:
        self.network.restart(kill=True)  # it has ended already
        for job in jobs:
            job.coordinator = self.network.release()

    def keep(self, name: str) -> None:
        shutil.copytree(self.network.state, self.copies / name)

    def put_back(self, name: str) -> None:
        shutil.rmtree(self.network.state)
        shutil.copytree(self.copies / name, self.network.state)

    def refuses_to_start(self) -> str:
        config = self.network.directory / "aggregator.toml"
        log = self.network.directory / "refused.log"
        node = Node("refused", log, BIN / "aggregator-node", "--config", config)
        assert node.ends() == 2
        assert "Traceback" not in node.output()
        return node.output()

    def kinds(self) -> list[str]:
        """The ledger's entries on the disk."""
        with closing(sqlite3.connect(self.network.state / "aggregator.sqlite")) as db:
            return [kind for (kind,) in db.execute("SELECT kind FROM ledger ORDER BY number")]


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    vault = Vault(tmp_path)
    yield vault
    if vault.network.node.process.poll() is None:
        vault.network.stop()


def join(opened: OpenRound, owner: str, seen: pb.Signed | None) -> aggregator_pb2.JoinRoundResponse:
    request = aggregator_pb2.JoinRoundRequest(
        manifest_digest=opened.digest, join=True, protocol=PROTOCOL, seen_head=seen
    )
    intake = opened.job.network.intake(owner)
    answer: aggregator_pb2.JoinRoundResponse = intake.JoinRound(request, timeout=SECONDS)
    return answer


def a_round(opened: OpenRound) -> tuple[pb.Signed, bytes]:
    """Run it to its release; returns the last head that alice was given, and the average."""
    heads = {owner: join(opened, owner, None).ledger_head for owner in UPDATES}
    for owner, update in UPDATES.items():
        opened.push(owner, update)
    return heads["alice"], opened.ends().payload


def test_an_aggregator_that_was_rolled_back_stops_at_the_first_owner_that_knows_better(
    vault: Vault,
) -> None:
    job = vault.network.job()
    a_round(job.open())
    vault.stop()
    vault.keep("old")
    vault.start(job)
    seen, _ = a_round(job.open(number=2, base=HALVES))
    vault.stop()
    vault.keep("new")
    vault.put_back("old")
    vault.start(job)

    again = job.open(["alice", "carol"], number=2, base=HALVES)  # the same number, another cohort
    with refused(PRECONDITION, "its state was replaced", "ROLLED_BACK"):
        join(again, "alice", seen)
    assert vault.network.node.ends() == 1
    assert "Traceback" not in vault.network.node.output()
    assert vault.kinds() == [
        "job",
        "open",
        "release",
        "open",
        "abort",
    ]  # of round 2 nothing is released

    for _ in range(2):
        said = vault.refuses_to_start()
        assert "is behind a head that this aggregator signed" in said
        assert "Put the newest copy back" in said

    newest = vault.copies / "new/aggregator.sqlite"
    shutil.copy(newest, vault.network.state)  # and nothing else: the mark of the roll-back stays
    for release in (vault.copies / "new/releases").iterdir():
        shutil.copy(release, vault.network.state / "releases")
    assert (vault.network.state / "rolled-back.json").exists()
    vault.start(job)
    assert not (vault.network.state / "rolled-back.json").exists()
    third = job.open(number=3, base=HALVES)
    assert join(third, "alice", seen).lease_seconds


def test_it_stops_at_a_push_that_brings_a_newer_head_and_counts_nothing(vault: Vault) -> None:
    job = vault.network.job()
    vault.stop()
    vault.keep("old")
    vault.start(job)
    seen, _ = a_round(job.open())
    vault.stop()
    vault.put_back("old")
    vault.start(job)
    again = job.open(["alice", "bob"])
    for owner in UPDATES:
        join(again, owner, None)
    again.push("bob", UPDATES["bob"])
    with refused(PRECONDITION, reason="ROLLED_BACK"):
        again.push("alice", UPDATES["alice"], seen_head=seen)
    assert vault.network.node.ends() == 1
    assert vault.kinds() == ["job", "open", "abort"]


def test_it_stops_at_a_question_about_a_round_that_brings_a_newer_head(vault: Vault) -> None:
    """Whichever round it is about: an older state may not know it."""
    job = vault.network.job()
    vault.stop()
    vault.keep("old")
    vault.start(job)
    opened = job.open()
    seen, _ = a_round(opened)
    vault.stop()
    vault.put_back("old")
    vault.start(job)
    question = aggregator_pb2.GetStatementRequest(manifest_digest=opened.digest, seen_head=seen)
    with refused(PRECONDITION, "its state was replaced", "ROLLED_BACK"):
        vault.network.record("alice").GetStatement(question, timeout=SECONDS)
    assert vault.network.node.ends() == 1


def test_a_budget_that_an_older_state_has_not_spent_yet_is_not_spent_again(vault: Vault) -> None:
    """It allows one release. Of the round that the older state opens in its place nothing leaves."""
    numbers = {"norm": 1.0, "noise": 2.0, "epsilon": 2.5, "delta": 1e-5}
    private = Aggregation(rule=pb.RULE_PRIVATE_MEAN, rule_numbers=numbers)
    job = vault.network.job(owners=("alice", "bob"), aggregation=private)
    job.bring(HALVES)
    vault.stop()
    vault.keep("old")
    vault.start(job)
    seen, average = a_round(job.open(base=HALVES))
    with refused(PRECONDITION, reason="BUDGET_SPENT"):
        job.open(number=2, base=average)
    vault.stop()
    vault.put_back("old")
    vault.start(job)
    again = job.open(base=HALVES)  # it knows no better
    with refused(PRECONDITION, reason="ROLLED_BACK"):
        join(again, "alice", seen)
    assert vault.network.node.ends() == 1
    assert vault.kinds() == ["job", "open", "abort"]


def test_a_ledger_that_was_forked_is_found_although_it_is_as_long(vault: Vault) -> None:
    job = vault.network.job()
    vault.stop()
    vault.keep("fork")
    vault.start(job)
    seen, _ = a_round(job.open(["alice", "bob"]))
    number = pb.LedgerHead.FromString(seen.body).number
    vault.stop()
    vault.put_back("fork")
    vault.start(job)
    other = job.open(["alice", "carol"])
    there = join(other, "carol", None).ledger_head
    assert pb.LedgerHead.FromString(there.body).number == number
    with refused(PRECONDITION, reason="ROLLED_BACK"):
        join(other, "alice", seen)
    assert vault.network.node.ends() == 1
    assert "is behind a head that this aggregator signed" in vault.refuses_to_start()


def test_an_empty_state_directory_under_the_old_key_is_found(vault: Vault) -> None:
    job = vault.network.job()
    seen, _ = a_round(job.open())
    vault.stop()
    shutil.rmtree(vault.network.state)
    vault.start(job)
    job.register()
    with refused(PRECONDITION, reason="ROLLED_BACK"):
        join(job.open(), "alice", seen)
    assert vault.network.node.ends() == 1


def test_a_head_that_the_aggregator_did_not_sign_stops_nothing(vault: Vault) -> None:
    """Else any owner could stop it."""
    opened = vault.network.job().open()
    newer = pb.LedgerHead(federation=FEDERATION, number=1000, head=bytes(32)).SerializeToString()
    genuine = join(opened, "bob", None).ledger_head
    forged = [
        sign(Ed25519PrivateKey.generate(), HEAD, newer),
        pb.Signed(type=HEAD, body=newer, signature=genuine.signature),
        pb.Signed(type=HEAD, body=newer),
        opened.signed,  # it is signed, but no head
        pb.Signed(),
    ]
    for seen in forged:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, reason="MALFORMED"):
            join(opened, "alice", seen)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, reason="MALFORMED"):
            opened.push("alice", UPDATES["alice"], seen_head=seen)
        question = aggregator_pb2.GetStatementRequest(manifest_digest=opened.digest, seen_head=seen)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, reason="MALFORMED"):
            vault.network.record("alice").GetStatement(question, timeout=SECONDS)
    assert join(opened, "alice", genuine).lease_seconds
    assert vault.network.node.process.poll() is None


def test_an_older_head_is_what_an_owner_that_was_away_brings(vault: Vault) -> None:
    job = vault.network.job()
    seen, base = a_round(job.open())
    vault.stop()
    vault.start(job)
    a_round(job.open(number=2, base=base))
    assert join(job.open(number=3, base=base), "alice", seen).lease_seconds
