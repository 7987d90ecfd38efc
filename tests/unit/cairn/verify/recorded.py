"""Makes what an aggregator, a coordinator and an owner leave behind: signed, chained and consistent.

The chains are computed here with plain hashlib and the rows written with plain SQL.
"""

import base64
import json
import sqlite3
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cairn.protocol.aggregation import Aggregation, aggregation_to_pb
from cairn.protocol.statements import HEAD, RECEIPT, STATEMENT, envelope, head_envelope, sign
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb

KEY = Ed25519PrivateKey.from_private_bytes(b"aggregator".ljust(32, b"."))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"somebody else".ljust(32, b"."))
OWNERS = ["alice", "bob", "carol"]
MODEL = b"the bytes of the model that round 2 released"
BEST_MODEL = b"the bytes of the model that round 1 released, which is the best"
Row = tuple[int, str, bytes, bytes]


def digest(text: str) -> bytes:
    return sha256(text.encode()).digest()


class Chain:
    """A ledger as it grows."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    @property
    def head(self) -> bytes:
        return self.rows[-1][3] if self.rows else bytes(32)

    def add(self, kind: str, **facts: object) -> None:
        timed = {**facts, "unix_ms": 1_700_000_000_000 + len(self.rows)}
        self.add_body(kind, json.dumps(timed, sort_keys=True, separators=(",", ":")).encode())

    def add_body(self, kind: str, body: bytes) -> None:
        head = sha256(self.head + kind.encode() + b"\x00" + body).digest()
        self.rows.append((len(self.rows) + 1, kind, body, head))


def receipt_of(owner: str, manifest: bytes, key: Ed25519PrivateKey = KEY) -> pb.Signed:
    body = aggregator_pb2.Receipt(
        manifest_digest=manifest,
        owner=owner,
        payload_digest=digest(f"{owner}'s update"),
        examples=120,
        metrics={"loss": 0.25},
        salt=digest(f"{owner}{manifest.hex()}"),
    )
    return sign(key, RECEIPT, body.SerializeToString())


class Federation:
    """Two rounds of the job tumours, each with its evaluation; dora is left out of every round."""

    def __init__(self) -> None:
        self.ledger = Chain()
        self.statements: list[pb.Signed] = []
        self.ledger.add("job", job="tumours", job_digest=digest("job").hex())
        base = digest("first model")
        for number in (1, 2):
            released = blake3(MODEL if number == 2 else BEST_MODEL).digest()
            self._round(number, pb.PHASE_TRAIN, base, released)
            self._round(number, pb.PHASE_EVALUATE, released, released)
            base = released

    def _round(self, number: int, phase: "pb.Phase", base: bytes, released: bytes) -> None:
        word = "train" if phase == pb.PHASE_TRAIN else "evaluate"
        manifest = digest(f"manifest {number} {word}")
        facts = {
            "job": "tumours",
            "round": number,
            "phase": word,
            "manifest_digest": manifest.hex(),
        }
        self.ledger.add("open", **facts, cohort=[*OWNERS, "dora"])
        statement = pb.ReleaseStatement(
            manifest_digest=manifest,
            federation="clinics",
            job="tumours",
            round=number,
            phase=phase,
            release_digest=released,
            base_digest=base,
            contributors=3,
            exclusions=[pb.Exclusion(owner="dora", reason=pb.REASON_DEADLINE)],
            aggregation=aggregation_to_pb(Aggregation()),
            weighting=pb.WEIGHTING_EQUAL,
            encoding=pb.ENCODING_WHOLE,
            metrics={"loss": 0.25},
            ledger_head=self.ledger.head,
            ledger_number=len(self.ledger.rows),
            sealed_unix_ms=1_700_000_000_000,
            software="0.2.0",
            floor=3,
            commitments=sorted(sha256(receipt_of(o, manifest).body).digest() for o in OWNERS),
        )
        self.statements.append(sign(KEY, STATEMENT, statement.SerializeToString()))
        self.ledger.add(
            "release",
            **facts,
            release_digest=released.hex(),
            base_digest=base.hex(),
            contributors=3,
            statement_digest=sha256(self.statements[-1].body).hexdigest(),
        )


def owners_chain(
    owner: str, statements: Sequence[pb.Signed], key: Ed25519PrivateKey = KEY
) -> Chain:
    """The ledger of an owner that was counted, or left out, in each of these."""
    chain = Chain()
    chain.add("refused", why="an invitation of another federation")
    for signed in statements:
        statement = pb.ReleaseStatement.FromString(signed.body)
        manifest = statement.manifest_digest
        facts = {
            "job": statement.job,
            "round": statement.round,
            "phase": "train" if statement.phase == pb.PHASE_TRAIN else "evaluate",
            "manifest_digest": manifest.hex(),
        }
        counted = owner in OWNERS
        chain.add("joined", **facts, destination="ab" * 32)
        if counted:
            sent = {"payload_digest": digest(f"{owner}'s update").hex(), "tensors": 2, "bytes": 44}
            chain.add("sent", **facts, **sent, examples=120, metrics={"loss": 0.25})
            receipt = receipt_of(owner, manifest, key)
            chain.add("receipt", manifest_digest=manifest.hex(), receipt=in_base64(receipt))
        chain.add(
            "released",
            **facts,
            release_digest=statement.release_digest.hex(),
            contributors=statement.contributors,
            counted=counted,
            **({} if counted else {"reason": "DEADLINE"}),
            statement=in_base64(signed),
        )
    return chain


def in_base64(signed: pb.Signed) -> str:
    return base64.b64encode(signed.SerializeToString()).decode()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Sequence[Row]) -> None:
    lines = [
        json.dumps({"number": n, "kind": kind, "body": body.decode(), "head": head.hex()})
        for n, kind, body, head in rows
    ]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_database(path: Path, rows: Sequence[Row], refusals: Sequence[Row] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path)
    columns = "(number INTEGER PRIMARY KEY, kind TEXT, body BLOB, head BLOB)"
    with db:
        db.execute(f"CREATE TABLE ledger {columns}")
        db.executemany("INSERT INTO ledger VALUES (?, ?, ?, ?)", rows)
        if path.name == "aggregator.sqlite":
            db.execute(f"CREATE TABLE refusals {columns}")
            db.executemany("INSERT INTO refusals VALUES (?, ?, ?, ?)", refusals)
    db.close()


def signed_head(chain: Chain, key: Ed25519PrivateKey = KEY) -> pb.Signed:
    head = pb.LedgerHead(federation="clinics", number=len(chain.rows), head=chain.head)
    return sign(key, HEAD, head.SerializeToString())


def write_run(folder: Path, federation: Federation) -> None:
    """A completed run's folder."""
    folder.mkdir()
    (folder / "best.safetensors").write_bytes(BEST_MODEL)
    write_json(folder / "best.json", envelope(federation.statements[0]))
    (folder / "model.safetensors").write_bytes(MODEL)
    write_json(folder / "release.json", envelope(federation.statements[2]))
    write_json(folder / "evaluation.json", envelope(federation.statements[3]))
    history = [
        {"round": n, "contributors": 3, "metrics": {"loss": 0.25}, "seconds": 0.1} for n in (1, 2)
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in history)
    (folder / "history.jsonl").write_text(text, encoding="utf-8")
    write_json(folder / "checkpoint.json", {"job": "tumours", "round": 2, "completed": True})
    write_lines(folder / "ledger.jsonl", federation.ledger.rows)
    write_json(folder / "ledger_head.json", head_envelope(signed_head(federation.ledger)))
