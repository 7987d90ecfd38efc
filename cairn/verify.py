"""Checks a ledger: its chain, its signed head, and another copy of it. Pure: values in, findings out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cairn.errors import InvalidMessage
from cairn.ledger import GENESIS, Entry, check_chain
from cairn.statements import verified_head
from cairn.v1 import round_pb2 as pb

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: in which file, what is so, and whether that is good."""

    where: str
    what: str
    good: bool = True

    def __str__(self) -> str:
        return f"{'ok' if self.good else 'FAILED':6} {self.where}: {self.what}"


@dataclass(frozen=True)
class Copy:
    """The entries of a ledger, as far as their chain holds, and the name of the file they are from."""

    name: str
    entries: tuple[Entry, ...]

    @property
    def head(self) -> bytes:
        return self.entries[-1].head if self.entries else GENESIS


def failed(where: str, what: str) -> Finding:
    return Finding(where, what, good=False)


def attempted(where: str, check: Callable[[], T]) -> tuple[T | None, list[Finding]]:
    """What `check` returns; or None, and its complaint."""
    try:
        return check(), []
    except InvalidMessage as error:
        return None, [failed(where, str(error))]


def check_ledger(name: str, entries: Iterable[Entry]) -> tuple[Copy, Finding]:
    """Check a chain from its beginning; the copy ends before the first entry that is not good."""
    kept: list[Entry] = []
    try:
        for entry in check_chain(entries):
            _ = entry.facts
            kept.append(entry)
    except (InvalidMessage, RecursionError) as error:
        what = (
            str(error) if isinstance(error, InvalidMessage) else f"entry {len(kept) + 1} is no JSON"
        )
        return Copy(name, tuple(kept)), failed(name, what)
    copy = Copy(name, tuple(kept))
    return copy, Finding(
        name, f"the chain of {len(kept)} entries holds; its head is {copy.head.hex()}"
    )


def check_head(
    name: str, key: Ed25519PublicKey, signed: pb.Signed, ledger: Copy
) -> Iterator[Finding]:
    """Whether the aggregator signed that its ledger goes exactly as far as this copy."""
    head, complaints = attempted(name, lambda: verified_head(key, signed))
    yield from complaints
    if head is None:
        return
    if head.number != len(ledger.entries):
        yield failed(
            name,
            f"the aggregator signed for {head.number} entries, {ledger.name} has"
            f" {len(ledger.entries)}: entry {min(head.number, len(ledger.entries)) + 1} is"
            f" {'missing' if head.number > len(ledger.entries) else 'too many'}",
        )
    elif head.head != ledger.head:
        yield failed(
            name, f"entry {head.number} of {ledger.name} is not the one that was signed for"
        )
    else:
        yield Finding(name, f"the aggregator signed for these {head.number} entries")


def check_same_ledger(one: Copy, other: Copy) -> Finding:
    """Whether two copies are of one ledger: the longer goes on where the shorter ends."""
    for mine, theirs in zip(one.entries, other.entries, strict=False):
        if mine.head != theirs.head:
            return failed(one.name, f"entry {mine.number} is another one than in {other.name}")
    shared = min(len(one.entries), len(other.entries))
    return Finding(one.name, f"its first {shared} entries are those of {other.name}")


def differing(facts: Mapping[str, Any], expected: Mapping[str, object]) -> str | None:
    """The first of the expected facts that is not so, in words."""
    for key, value in expected.items():
        if facts.get(key) != value or isinstance(facts.get(key), bool) != isinstance(value, bool):
            return f"{key} {short(facts.get(key))} instead of {short(value)}"
    return None


def short(value: object) -> str:
    """A value that anybody may have written, fit for a terminal."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"  # noqa: PLR2004 - a line of a terminal
