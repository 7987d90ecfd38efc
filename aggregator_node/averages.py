"""Remembers what each release is an average of, and refuses one that may not stand beside the others.

It is read off what the aggregator has signed when it starts, so there is no table of it to be changed.
"""

import threading
from collections import defaultdict
from collections.abc import Collection
from hashlib import sha256

from aggregator_node.policy import Average, check_difference
from aggregator_node.push import Terms
from cairn.limits import MAX_EXAMPLES
from cairn.tensors import Schema

_Key = tuple[
    int, bytes, bytes
]  # the phase, the digest of the schema and that of the base, if it matters


class Averages:
    """Every method may be called from any thread."""

    def __init__(self, *, any_base: bool) -> None:
        """With `any_base`, releases of one schema are compared whatever their bases are."""
        self._any_base = any_base
        self._lock = threading.Lock()
        self._released: defaultdict[_Key, dict[bytes, Average]] = defaultdict(dict)

    def check(self, terms: Terms, owners: Collection[str]) -> None:
        """Raise WrongState where an average over these owners may not stand beside an earlier one."""
        with self._lock:
            self._check(terms, owners)

    def add(self, manifest_digest: bytes, terms: Terms, owners: Collection[str]) -> None:
        """Check and remember in one step, so that no two releases pass together."""
        with self._lock:
            self._check(terms, owners)
            self._released[self._key(terms)][manifest_digest] = _average(terms, owners)

    def remember(self, manifest_digest: bytes, terms: Terms, owners: Collection[str]) -> None:
        """Remember what was released before this process began."""
        with self._lock:
            self._released[self._key(terms)][manifest_digest] = _average(terms, owners)

    def forget(self, manifest_digest: bytes, terms: Terms) -> None:
        """The round is not released after all."""
        with self._lock:
            self._released[self._key(terms)].pop(manifest_digest, None)

    def _check(self, terms: Terms, owners: Collection[str]) -> None:
        earlier = self._released.get(self._key(terms), {})
        check_difference(_average(terms, owners), set(earlier.values()))

    def _key(self, terms: Terms) -> _Key:
        base = b"" if self._any_base else terms.manifest.base_digest
        return int(terms.manifest.phase), _digest_of(terms.job.schema), base


def _digest_of(schema: Schema) -> bytes:
    return sha256(schema.header()).digest()


def _average(terms: Terms, owners: Collection[str]) -> Average:
    return Average(frozenset(owners), terms.weight(1), terms.weight(MAX_EXAMPLES))
