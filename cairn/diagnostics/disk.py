"""Checks where a node writes: that it can, how much room there is, and its own ledger's last time."""

import sqlite3
from datetime import datetime
from pathlib import Path

from cairn.diagnostics.findings import Finding, fault, note, ok, warning
from cairn.errors import InvalidMessage, UsageError
from cairn.ledger.database import last_entry
from cairn.storage.database import is_in_use
from cairn.storage.directory import WritableDirectory

CLOCK_SKEW_SECONDS = 60  # by so much two clocks that are set may differ


def place_findings(place: WritableDirectory) -> list[Finding]:
    """Whether it is itself in its place and can be written to, and how much room it has."""
    try:
        place.check_links()
        there = place.check_writing()
        free = place.free_bytes()
    except UsageError as error:
        return [fault("disk", str(error))]
    scarcity = place.scarcity(free)
    if scarcity:
        return [warning("disk", scarcity)]
    state = "can be written to" if there else "is made at the first start"
    return [ok("disk", f"{place.name} {place.path} {state}, {free >> 30} GiB free")]


def use_findings(place: WritableDirectory) -> list[Finding]:
    """Whether the node runs now."""
    try:
        if is_in_use(place.path):
            return [note("process", f"a node that runs now has {place.path} open")]
    except OSError:
        pass  # the directory cannot be used, which `place_findings` says
    return []


def clock_findings(place: WritableDirectory, database: str, now: datetime) -> list[Finding]:
    """Whether the clock has reached the time of the last entry of the node's own ledger."""
    try:
        entry = last_entry(place.path / database)
        unix_ms = entry.facts.get("unix_ms") if entry else None
    except (sqlite3.Error, OSError, InvalidMessage) as error:
        if use_findings(place):
            return [note("clock", f"the ledger is being written and was not looked at: {error}")]
        return [fault("ledger", str(place.unusable(error)))]
    if entry is None or not isinstance(unix_ms, int):
        return []
    return [_clock(place.path / database, entry.number, unix_ms, now)]


def _clock(file: Path, number: int, unix_ms: int, now: datetime) -> Finding:
    ahead = unix_ms / 1000 - now.timestamp()
    if ahead <= CLOCK_SKEW_SECONDS:
        return ok("clock", f"it is past the last entry of {file}, number {number}")
    # No fault: were the clock wrong then and right now, the node could not start until that time.
    return warning(
        "clock",
        f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC, which is {ahead:.0f} seconds before"
        f" the last entry of {file} was made: set the clock; if it is right now, it was wrong then",
    )
