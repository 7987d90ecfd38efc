"""Tells the kinds of TOML files apart by their keys, so that the wrong one is named and not judged key by key."""

from collections.abc import Collection

# What only a file of the kind has, or has together.
KEYS: dict[str, frozenset[str]] = {
    "a coordinator": frozenset({"listen", "aggregator"}),
    "an owner": frozenset({"coordinator", "aggregator", "state", "tasks"}),
    "an aggregator": frozenset({"listen_owners", "listen_coordinators", "state"}),
    "a job": frozenset({"task", "model", "rounds"}),
}


def kind_of(keys: Collection[str]) -> str | None:
    """The kind whose keys most of these are; None where they are of none."""
    most = max(KEYS, key=lambda kind: len(KEYS[kind].intersection(keys)))
    return most if KEYS[most].intersection(keys) else None
