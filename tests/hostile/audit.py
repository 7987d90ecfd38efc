"""Verifies an aggregator's books from its files alone: chain, signatures, one release per round."""

import itertools
import sqlite3
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.hostile.checks import Entry, chain, database

_SMALLEST_FLOOR = 2


@dataclass(frozen=True)
class Round:
    """One row of the table of rounds, its signatures verified."""

    digest: bytes
    state: int
    manifest: pb.RoundManifest
    statement: pb.ReleaseStatement | None
    statement_digest: str | None

    @property
    def counted(self) -> frozenset[str]:
        """Whose updates the release counts, by the statement."""
        assert self.statement is not None
        return frozenset(self.manifest.cohort) - {e.owner for e in self.statement.exclusions}


def check_books(state: Path, key: Ed25519PublicKey) -> None:
    """Replay the ledger, the manifests and the statements that an aggregator keeps."""
    with database(state / "aggregator.sqlite") as db:
        ledger = chain(db, "ledger")
        chain(db, "refusals")
        rounds = rounds_in(db, key)
        specs = dict(db.execute("SELECT name, spec FROM job"))
    named = Counter((entry.kind, entry.facts.get("manifest_digest")) for entry in ledger)
    for found in rounds:
        _check_round(found, ledger, named)
        assert found.manifest.job_digest == sha256(specs[found.manifest.job]).digest()
        groups = pb.JobSpec.FromString(specs[found.manifest.job]).groups
        cohort = set(found.manifest.cohort)
        assert not groups or any(cohort <= set(group.owners) for group in groups)
        if found.statement is not None:
            _check_release(found, ledger, found.statement)
    _check_chains(rounds)
    _check_differences(rounds, specs)
    assert sum(named.values()) == len(specs) + len(rounds) + sum(
        found.state != aggregator_pb2.ROUND_STATE_OPEN for found in rounds
    )
    _check_files(state, rounds)


def rounds_in(db: sqlite3.Connection, key: Ed25519PublicKey) -> list[Round]:
    """All rounds there ever were, in the order of their jobs and numbers."""
    rows = db.execute(
        "SELECT manifest_digest, state, manifest, statement FROM round ORDER BY job, number, phase"
    )
    return [_round(row, key) for row in rows]


def opened(key: Ed25519PublicKey, kind: str, signed: bytes) -> bytes:
    """The body of a signed message; its signature is over DSSE's pre-authentication encoding."""
    message = pb.Signed.FromString(signed)
    assert message.type == kind
    encoded = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(message.body), message.body)
    key.verify(message.signature, encoded)
    return message.body


def _round(row: Any, key: Ed25519PublicKey) -> Round:
    digest, state, manifest, statement = row
    body = opened(key, "cairn.v1.RoundManifest", manifest)
    assert sha256(body).digest() == digest
    stated = stated_digest = None
    if statement is not None:
        stated_body = opened(key, "cairn.v1.ReleaseStatement", statement)
        stated = pb.ReleaseStatement.FromString(stated_body)
        stated_digest = sha256(stated_body).hexdigest()
    return Round(digest, state, pb.RoundManifest.FromString(body), stated, stated_digest)


def _check_round(found: Round, ledger: list[Entry], named: Counter[tuple[str, Any]]) -> None:
    digest = found.digest.hex()
    released = found.state == aggregator_pb2.ROUND_STATE_RELEASED
    aborted = found.state == aggregator_pb2.ROUND_STATE_ABORTED
    ends = [named["open", digest], named["release", digest], named["abort", digest]]
    assert ends == [1, int(released), int(aborted)]
    assert (found.statement is not None) == released
    cohort = list(found.manifest.cohort)
    assert cohort == sorted(set(cohort))
    assert len(cohort) >= found.manifest.floor >= _SMALLEST_FLOOR
    _check_head(ledger, found.manifest.ledger_number, found.manifest.ledger_head)
    assert ledger[found.manifest.ledger_number].facts["manifest_digest"] == digest


def _check_release(found: Round, ledger: list[Entry], stated: pb.ReleaseStatement) -> None:
    manifest = found.manifest
    assert stated.manifest_digest == found.digest
    assert (stated.job, stated.round, stated.phase) == (
        manifest.job,
        manifest.round,
        manifest.phase,
    )
    assert stated.base_digest == manifest.base_digest
    assert stated.floor == manifest.floor
    assert stated.contributors >= manifest.floor
    commitments = list(stated.commitments)
    assert commitments == sorted(set(commitments))
    assert len(commitments) == stated.contributors
    assert len(found.counted) == stated.contributors
    excluded = [exclusion.owner for exclusion in stated.exclusions]
    assert sorted([*found.counted, *excluded]) == list(manifest.cohort)
    _check_head(ledger, stated.ledger_number, stated.ledger_head)
    entry = ledger[stated.ledger_number]  # the next, because numbers count from 1
    assert entry.kind == "release"
    assert entry.facts["manifest_digest"] == found.digest.hex()
    assert entry.facts["release_digest"] == stated.release_digest.hex()
    assert entry.facts["statement_digest"] == found.statement_digest


def _check_head(ledger: list[Entry], number: int, head: bytes) -> None:
    assert head == (ledger[number - 1].head if number else bytes(32))


def _check_chains(rounds: list[Round]) -> None:
    """The base of a training round is the job's last release, and so is that of an evaluation."""
    names = [(r.manifest.job, r.manifest.round, r.manifest.phase) for r in rounds]
    assert len(names) == len(set(names))
    last: dict[str, bytes] = {}
    for found in rounds:
        job = found.manifest.job
        assert found.manifest.previous_release_digest == last.get(job, b"")
        if job in last:
            assert found.manifest.base_digest == last[job]
        if found.statement is not None and found.manifest.phase == pb.PHASE_TRAIN:
            last[job] = found.statement.release_digest


def _check_differences(rounds: list[Round], specs: dict[str, bytes]) -> None:
    """What is said twice of one base is of the same owners, or of owners with nobody in common.

    Both phases of rounds from one base can say the same metric; only trainings say tensors.
    """
    schemas = {name: pb.JobSpec.FromString(spec).schema for name, spec in specs.items()}
    released = [found for found in rounds if found.statement is not None]
    for one, other in itertools.combinations(released, 2):
        if (
            one.manifest.base_digest == other.manifest.base_digest
            and schemas[one.manifest.job] == schemas[other.manifest.job]
            and _say_the_same(one, other)
        ):
            assert one.counted == other.counted or not one.counted & other.counted


def _say_the_same(one: Round, other: Round) -> bool:
    assert one.statement is not None
    assert other.statement is not None
    have_metrics = bool(one.statement.metrics and other.statement.metrics)
    return one.manifest.phase == other.manifest.phase or have_metrics


def _check_files(state: Path, rounds: list[Round]) -> None:
    """The safetensors file of a release has the digest that its statement names."""
    stated = {r.digest.hex(): r.statement for r in rounds if r.statement is not None}
    for path in (state / "releases").iterdir():
        statement = stated[path.stem]
        assert blake3(path.read_bytes()).digest() == statement.release_digest
