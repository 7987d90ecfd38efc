"""What the aggregator records, over the real network: what anybody can check and nobody can change."""

import json
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from typing import Any

import grpc
import numpy as np
import pytest

from cairn.protocol.statements import verified_head
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.scenarios.processes import Node
from tests.service.network import FEDERATION, SECONDS, Job, Network, refused
from tests.warm.start import BIN

ONES = np.ones(4, np.float32).tobytes()
COHORT = ("alice", "bob", "carol")


def listed(network: Network, who: str = "alice", first: int = 1, limit: int = 1000) -> Any:
    request = aggregator_pb2.ListEntriesRequest(first=first, limit=limit)
    return network.record(who).ListEntries(request, timeout=SECONDS)


def chained(rows: list[tuple[int, str, bytes, bytes]]) -> bytes:
    """Recompute a chain with hashlib alone; returns its head."""
    head = bytes(32)
    for expected, (number, kind, body, stored) in enumerate(rows, 1):
        head = sha256(head + kind.encode() + b"\0" + body).digest()
        assert (number, stored) == (expected, head)
    return head


def rows_of(answer: Any) -> list[tuple[int, str, bytes, bytes]]:
    return [(e.number, e.kind, e.body, e.head) for e in answer.entries]


def stored(network: Network, table: str) -> list[tuple[int, str, bytes, bytes]]:
    uri = f"file:{network.state / 'aggregator.sqlite'}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as db:
        return db.execute(f"SELECT * FROM {table} ORDER BY number").fetchall()  # noqa: S608 - ours


def released_round(job: Job, number: int = 1, base: bytes | None = None) -> bytes:
    return job.run(dict.fromkeys(COHORT, ONES), number=number, base=base).payload


def test_the_head_that_is_signed_is_that_of_the_last_entry(own_network: Network) -> None:
    released_round(own_network.job())
    answer = listed(own_network)
    signed = verified_head(own_network.key, answer.head)
    assert signed.federation == FEDERATION
    assert signed.number == len(answer.entries) == 3
    assert signed.head == chained(rows_of(answer)) == answer.entries[-1].head
    assert [entry.kind for entry in answer.entries] == ["job", "open", "release"]


def test_the_head_is_signed_before_there_is_any_entry(own_network: Network) -> None:
    answer = listed(own_network)
    signed = verified_head(own_network.key, answer.head)
    assert (signed.number, signed.head, list(answer.entries)) == (0, bytes(32), [])


def test_entries_are_listed_page_by_page_and_every_page_has_the_whole_ledgers_head(
    own_network: Network,
) -> None:
    job, base = own_network.job(), None
    for number in (1, 2, 3):
        base = released_round(job, number, base)
    whole = listed(own_network)
    pages: list[Any] = []
    while (page := listed(own_network, "coordinator", len(pages) + 1, 2)).entries:
        assert len(page.entries) <= 2
        assert page.head == whole.head
        pages += page.entries
    assert pages == list(whole.entries)
    assert len(pages) == 7
    for behind in (8, 1000, 2**63 - 1):
        assert not listed(own_network, first=behind).entries
    for impossible in (0, 2**63, 2**64 - 1):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, f"first is {impossible}", "MALFORMED"):
            listed(own_network, first=impossible)


def test_manifests_and_statements_name_the_head_that_their_own_entry_follows(
    own_network: Network,
) -> None:
    job = own_network.job()
    opened = job.open(COHORT)
    for owner in COHORT:
        opened.join(owner)
        opened.push(owner, ONES)
    statement = opened.ends().statement
    entries = {entry.number: entry for entry in listed(own_network).entries}
    manifest = pb.RoundManifest.FromString(opened.signed.body)
    for message, kind in ((manifest, "open"), (statement, "release")):
        assert message.ledger_head == entries[message.ledger_number].head
        assert entries[message.ledger_number + 1].kind == kind
        facts = json.loads(entries[message.ledger_number + 1].body)
        assert facts["manifest_digest"] == opened.digest.hex()
    signed, _ = opened.collect()
    assert facts["statement_digest"] == sha256(signed.body).hexdigest()
    assert facts["base_digest"] == manifest.base_digest.hex()
    assert facts["release_digest"] == statement.release_digest.hex()
    assert facts["contributors"] == 3
    assert abs(facts["unix_ms"] - statement.sealed_unix_ms) < 60_000


def test_owners_are_given_the_signed_head_when_they_join(own_network: Network) -> None:
    opened = own_network.job().open(COHORT)
    head = verified_head(own_network.key, opened.join("alice").ledger_head)
    assert (head.number, head.head) == (2, listed(own_network).entries[-1].head)


def test_a_statement_has_the_commitment_of_every_counted_owner_and_no_other(
    network: Network,
) -> None:
    """The same update of all: only the random bytes of their receipts tell them apart."""
    opened = network.job().open((*COHORT, "dave"))
    receipts = {}
    for owner in (*COHORT, "dave"):
        opened.join(owner)
    for owner in COHORT:
        receipts[owner] = opened.push(owner, ONES, metrics={"loss": 0.5})
    with refused(grpc.StatusCode.INVALID_ARGUMENT, reason="NON_FINITE"):
        opened.push("dave", np.full(4, np.nan, np.float32).tobytes())
    statement = opened.ends().statement
    expected = sorted(sha256(receipt.body).digest() for receipt in receipts.values())
    assert list(statement.commitments) == expected
    assert len(set(expected)) == statement.contributors == 3
    bodies = [aggregator_pb2.Receipt.FromString(receipt.body) for receipt in receipts.values()]
    assert len({body.salt for body in bodies}) == 3
    assert all(len(body.salt) == 32 for body in bodies)
    assert [dict(body.metrics) for body in bodies] == [{"loss": 0.5}] * 3
    assert opened.receipt("alice") == receipts["alice"]


def test_what_was_refused_is_recorded_in_a_chain_that_nobody_is_shown(own_network: Network) -> None:
    job = own_network.job(floor=3)
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        job.open(("alice", "bob"))
    opened = job.open(COHORT)
    opened.join("alice")
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        opened.push("alice", np.full(4, np.inf, np.float32).tobytes())
    with refused(grpc.StatusCode.PERMISSION_DENIED, "roster", "UNKNOWN_OWNER"):
        opened.join("mallory")
    with refused(grpc.StatusCode.PERMISSION_DENIED, reason="NOT_ALLOWED"):
        own_network.release("bob").RegisterJob(aggregator_pb2.RegisterJobRequest(), timeout=SECONDS)
    intake = own_network.intake("bob")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, reason="NO_DEADLINE"):
        intake.GetReceipt(aggregator_pb2.GetReceiptRequest())
    rows = stored(own_network, "refusals")
    chained(rows)
    names = ("caller", "method", "error", "reason")
    node = f"spiffe://{FEDERATION}"
    assert [tuple(json.loads(body)[name] for name in names) for _, _, body, _ in rows] == [
        (
            f"{node}/coordinator/coordinator",
            "/cairn.v1.ReleaseService/OpenRound",
            "InvalidMessage",
            "COHORT_TOO_SMALL",
        ),
        (
            f"{node}/owner/alice",
            "/cairn.v1.IntakeService/SubmitUpdate",
            "UpdateRefused",
            "NON_FINITE",
        ),
        (
            f"{node}/owner/mallory",
            "/cairn.v1.IntakeService/JoinRound",
            "CallerNotAllowed",
            "UNKNOWN_OWNER",
        ),
        (
            f"{node}/owner/bob",
            "/cairn.v1.ReleaseService/RegisterJob",
            "CallerNotAllowed",
            "NOT_ALLOWED",
        ),
        (
            f"{node}/owner/bob",
            "/cairn.v1.IntakeService/GetReceipt",
            "InvalidMessage",
            "NO_DEADLINE",
        ),
    ]
    shown = b"".join(entry.body for entry in listed(own_network).entries)
    assert b"bob" in shown  # in a cohort
    assert b"mallory" not in shown
    assert b"SubmitUpdate" not in shown
    assert all(set(json.loads(body)) == {*names, "unix_ms"} for _, _, body, _ in rows)


def test_a_flood_of_refusals_is_written_once_and_does_not_hide_anothers(
    own_network: Network,
) -> None:
    opened = own_network.job().open(COHORT)
    for _ in range(100):
        with refused(grpc.StatusCode.NOT_FOUND):
            opened.receipt("alice")
    with refused(grpc.StatusCode.NOT_FOUND):
        opened.receipt("bob")
    rows = stored(own_network, "refusals")
    chained(rows)
    callers = [json.loads(body)["caller"].rpartition("/")[2] for _, _, body, _ in rows]
    assert callers == ["alice", "bob"]


def starts_not(network: Network) -> str:
    """What an aggregator says that refuses to start."""
    log = network.directory / "refused.log"
    log.unlink(missing_ok=True)
    node = Node(
        "refused", log, BIN / "aggregator-node", "--config", network.directory / "aggregator.toml"
    )
    assert node.ends() == 2
    assert "Traceback" not in node.output()
    assert "Put an unchanged copy of the directory back" in node.output()
    return node.output()


def change_a_body(db: sqlite3.Connection) -> None:
    db.execute(
        "UPDATE ledger SET body = CAST(replace(body, 'alice', 'alicf') AS BLOB) WHERE number = 2"
    )


def change_a_kind(db: sqlite3.Connection) -> None:
    db.execute("UPDATE ledger SET kind = 'abort' WHERE kind = 'release' AND number = 3")


def change_a_head(db: sqlite3.Connection) -> None:
    db.execute("UPDATE ledger SET head = zeroblob(32) WHERE number = 4")


def leave_one_out(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM ledger WHERE number = 2")


def swap_two(db: sqlite3.Connection) -> None:
    for before, after in ((2, 100), (3, 2), (100, 3)):
        db.execute("UPDATE ledger SET number = ? WHERE number = ?", (after, before))


def cut_off(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM ledger WHERE number > 3")


def cut_off_all(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM ledger")


def write_anew(db: sqlite3.Connection) -> None:
    """As somebody would who can compute SHA-256."""
    head = bytes(32)
    rows = db.execute("SELECT number, kind, body FROM ledger ORDER BY number").fetchall()
    for number, kind, body in rows:
        changed = body.replace(b'"alice",', b"")
        head = sha256(head + kind.encode() + b"\0" + changed).digest()
        db.execute("UPDATE ledger SET body = ?, head = ? WHERE number = ?", (changed, head, number))


CHANGES: dict[Callable[[sqlite3.Connection], None], str] = {
    change_a_body: "entry 2 does not follow",
    change_a_kind: "entry 3 does not follow",
    change_a_head: "entry 4 does not follow",
    leave_one_out: "entry 2 is missing",
    swap_two: "entry 2 does not follow",
    cut_off: "ends with entry 3, but messages were signed that name entry 5",
    cut_off_all: "ends with entry 0, but messages were signed that name entry 5",
    write_anew: "entry 2 is not the one that was signed for",
}


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """An aggregator that was stopped after two rounds."""
    network = Network(tmp_path_factory.mktemp("two"))
    job = network.job()
    released_round(job, 2, released_round(job))
    network.node.send(signal.SIGTERM)
    assert network.node.ends() == 0
    yield network
    network.stop()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_an_aggregator_does_not_start_on_a_ledger_that_was_changed(
    two_rounds: Network, change: Callable[[sqlite3.Connection], None]
) -> None:
    database = two_rounds.state / "aggregator.sqlite"
    unchanged = two_rounds.directory / "unchanged.sqlite"
    shutil.copy(database, unchanged)
    try:
        with closing(sqlite3.connect(database)) as db:
            change(db)
            db.commit()
        assert CHANGES[change] in starts_not(two_rounds)
    finally:
        shutil.copy(unchanged, database)


def test_it_starts_again_on_the_unchanged_copy(two_rounds: Network) -> None:
    two_rounds.restart(kill=True)
    assert len(listed(two_rounds).entries) == 5
