"""Puts the entries of a ledger in lines of JSON for people."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cairn.errors import InvalidMessage, UsageError
from cairn.ledger.chain import Entry
from cairn.ledger.files import find_ledger, find_refusals, read_ledger, read_refusals

_SIGNED_MESSAGE = re.compile(r"[A-Za-z0-9+/]{128,}={0,2}")  # longer than any digest in hex


def lines_for_people(path: Path, *, full: bool, refusals: bool) -> Iterator[str]:
    """A line for each entry of the ledger, or with `refusals` of the refusals, that `path` is or has.

    Leaves signed messages in base64 out unless `full`. Raises UsageError where nothing can be read.
    """
    file = find_refusals(path) if refusals else find_ledger(path)
    try:
        for entry in read_refusals(file) if refusals else read_ledger(file):
            yield json.dumps(_values(entry, full=full))
    except (InvalidMessage, RecursionError) as error:
        raise UsageError(f"{file}: {error}") from None


def _values(entry: Entry, *, full: bool) -> dict[str, Any]:
    facts = entry.facts
    ours = {"number": entry.number, "kind": entry.kind, "at": _time(facts.pop("unix_ms", None))}
    if not full:
        facts = {key: value for key, value in facts.items() if not _is_signed_message(value)}
    return {**ours, **facts, **ours}  # ours come first, and no fact replaces them


def _is_signed_message(value: object) -> bool:
    return isinstance(value, str) and _SIGNED_MESSAGE.fullmatch(value) is not None


def _time(unix_ms: object) -> str | None:
    if not isinstance(unix_ms, int):
        return None
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return None
