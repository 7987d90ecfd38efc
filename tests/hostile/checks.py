"""What every attack is checked by, computed from files and bytes alone and not by the nodes' own code.

Chains with hashlib, signatures with `cryptography`, averages with NumPy, opened files with inotify.
"""

import ctypes
import json
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from cairn.model.schema import Schema, TensorSpec
from tests.service.network import FEDERATION, OWNERS, Ended, Network, refused

MEMORY_BYTES = 32 << 20  # how much larger a node may become while it refuses
ONE_HOT = Schema.of([TensorSpec("weight", "F32", (len(OWNERS),))])

_CHANGING = ("job", "round", "ledger")
_IN_OPEN = 0x20


@dataclass(frozen=True)
class Entry:
    """One entry of a chain; `facts` is its JSON body."""

    number: int
    kind: str
    facts: dict[str, Any]
    head: bytes


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """A node's database, to read only, at one moment."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as db:
        db.execute("BEGIN")
        yield db


def chain(db: sqlite3.Connection, table: str) -> list[Entry]:
    """The entries of a ledger; each must follow from the one before it."""
    found = []
    head = bytes(32)
    rows = db.execute(f"SELECT number, kind, body, head FROM {table} ORDER BY number")  # noqa: S608 - the table's name is ours
    for place, (number, kind, body, written) in enumerate(rows, start=1):
        head = sha256(head + kind.encode() + b"\0" + body).digest()
        assert (number, written) == (place, head), f"{table}: entry {place} was changed"
        found.append(Entry(number, kind, json.loads(body), head))
    return found


def state_digest(state: Path) -> str:
    """A digest of all that an aggregator keeps, but for what it refused."""
    digest = sha256()
    with database(state / "aggregator.sqlite") as db:
        for table in _CHANGING:
            rows = db.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()  # noqa: S608 - the tables' names are ours
            digest.update(repr((table, rows)).encode())
    for path in sorted((state / "releases").iterdir()):
        digest.update(path.name.encode() + sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def refusals(state: Path) -> list[Entry]:
    """What an aggregator has refused, its chain verified: {caller, method, error, reason, unix_ms}."""
    with database(state / "aggregator.sqlite") as db:
        return chain(db, "refusals")


def written_refusals(state: Path) -> set[tuple[str, str, str]]:
    """The refusals of the last hour, in which the same is written once: caller, bare method, reason."""
    return {
        (entry.facts["caller"], entry.facts["method"].rpartition("/")[2], entry.facts["reason"])
        for entry in refusals(state)
        if entry.kind == "refused"
    }


def owner_entries(state: Path) -> list[Entry]:
    """An owner's ledger, its chain verified; empty before its first start."""
    if not (state / "owner.sqlite").exists():
        return []
    with database(state / "owner.sqlite") as db:
        return chain(db, "ledger")


def rss_bytes(pid: int) -> int:
    """The memory that a process has resident now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def bounded(pid: int, most: int = MEMORY_BYTES) -> Iterator[None]:
    """What is done inside must not make the process larger by more than so many bytes."""
    before = rss_bytes(pid)
    yield
    assert rss_bytes(pid) - before < most


@contextmanager
def refuses(
    network: Network, caller: str, method: str, code: grpc.StatusCode, reason: str
) -> Iterator[None]:
    """The aggregator must refuse the call inside like this, write it down, and change nothing else.

    `caller` is "role/name", or "unknown", and `method` the bare name, as "OpenRound". The aggregator writes
    the same refusal down once an hour, and of one caller 60, so a test with many should have callers of its
    own (`new_caller` in conftest.py).
    """
    before = state_digest(network.state)
    with bounded(network.node.pid), refused(code, reason=reason):
        yield
    assert state_digest(network.state) == before
    who = f"spiffe://{FEDERATION}/{caller}" if "/" in caller else caller
    assert (who, method, reason) in written_refusals(network.state)


def one_hot(owner: str) -> bytes:
    """The update of an owner for the model ONE_HOT: 1 in its own place, 0 in all others."""
    return np.array([name == owner for name in OWNERS], "<f4").tobytes()


def check_one_hot(ended: Ended, counted: Collection[str]) -> None:
    """The average must hold each of these owners exactly once, bit by bit, and nobody else."""
    assert ended.statement.contributors == len(counted)
    expected = [float(name in counted) / len(counted) for name in OWNERS]
    assert ended.payload == np.array(expected, "<f4").tobytes()


@contextmanager
def opened_files(directory: Path) -> Iterator[Callable[[], list[str]]]:
    """Watch a directory and its files: the function tells which of them were opened, "" for itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    seen: list[str] = []

    def opened() -> list[str]:
        with suppress(BlockingIOError):
            while events := os.read(descriptor, 1 << 16):
                seen.extend(_names(events))
        return seen

    try:
        watch = libc.inotify_add_watch(descriptor, os.fsencode(directory), _IN_OPEN)
        assert watch >= 0, os.strerror(ctypes.get_errno())
        yield opened
    finally:
        os.close(descriptor)


def _names(events: bytes) -> Iterator[str]:
    """The names in a run of `struct inotify_event`: int wd; uint32 mask, cookie, len; char name[len]."""
    while events:
        length = int.from_bytes(events[12:16], "little")
        yield events[16 : 16 + length].rstrip(b"\0").decode()
        events = events[16 + length :]
