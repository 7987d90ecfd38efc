"""Remembers what each release is an average of, and refuses one that may not stand beside the others.

What a release says is of two kinds, and like is compared with like: the tensors of a training with the tensors of
every training from the same base, and metrics with the metrics of every release that starts from the same base,
whatever its phase. With `any_base` there is one kind: every release of a schema is compared with every other.

It is read off what the aggregator has signed when it starts, so there is no table of it to be changed.
"""

import threading
from collections import defaultdict
from collections.abc import Collection
from enum import Enum
from hashlib import sha256

from aggregator_node.admission import Average, are_different, check_difference
from aggregator_node.rounds.upload import RoundContext
from cairn.model.schema import Schema
from cairn.protocol.limits import MAX_EXAMPLES


class _Says(Enum):
    """What is compared with its like."""

    TENSORS = "tensors"
    METRICS = "metrics"
    ANYTHING = "anything"


_Key = tuple[_Says, bytes, bytes]  # the digests of the schema and of the base, if it matters


class ReleaseOverlap:
    """Every method may be called from any thread."""

    def __init__(self, *, any_base: bool) -> None:
        """With `any_base`, releases of one schema are compared whatever their bases and phases are."""
        self._any_base = any_base
        self._lock = threading.Lock()
        self._released: defaultdict[_Key, dict[bytes, Average]] = defaultdict(dict)

    def check(self, terms: RoundContext, owners: Collection[str]) -> None:
        """Raise WrongState where an average over these owners may not stand beside an earlier one.

        A training may where only its metrics may not: see `add`.
        """
        with self._lock:
            self._may_say_metrics(terms, owners)

    def add(
        self,
        manifest_digest: bytes,
        terms: RoundContext,
        owners: Collection[str],
        *,
        has_metrics: bool,
    ) -> bool:
        """Check and remember in one step, so that no two releases pass together.

        Returns whether the release may carry its metrics. A training whose tensors may stand beside the others
        and whose metrics may not leaves without metrics; of an evaluation nothing would be left, so it is refused.
        """
        with self._lock:
            says_metrics = self._may_say_metrics(terms, owners) and has_metrics
            self._keep(manifest_digest, terms, owners, has_metrics=says_metrics)
        return says_metrics

    def remember(
        self,
        manifest_digest: bytes,
        terms: RoundContext,
        owners: Collection[str],
        *,
        has_metrics: bool,
    ) -> None:
        """Remember what was released before this process began."""
        with self._lock:
            self._keep(manifest_digest, terms, owners, has_metrics=has_metrics)

    def forget(self, manifest_digest: bytes, terms: RoundContext) -> None:
        """The round is not released after all."""
        with self._lock:
            for says in _Says:
                self._released[self._key(says, terms)].pop(manifest_digest, None)

    def _may_say_metrics(self, terms: RoundContext, owners: Collection[str]) -> bool:
        """Whether such a release may carry metrics. Raises WrongState where there may be no such release."""
        average = _average(terms, owners)
        check_difference(average, self._earlier(self._must_say(terms), terms))
        return not are_different(average, self._earlier(_Says.METRICS, terms))

    def _keep(
        self,
        manifest_digest: bytes,
        terms: RoundContext,
        owners: Collection[str],
        *,
        has_metrics: bool,
    ) -> None:
        says = {self._must_say(terms)} | ({_Says.METRICS} if has_metrics else set())
        for each in says:
            self._released[self._key(each, terms)][manifest_digest] = _average(terms, owners)

    def _must_say(self, terms: RoundContext) -> _Says:
        """What a release says in any case. An evaluation counts as one with metrics, though it may have none."""
        if self._any_base:
            return _Says.ANYTHING
        return _Says.TENSORS if terms.manifest.trains else _Says.METRICS

    def _earlier(self, says: _Says, terms: RoundContext) -> set[Average]:
        return set(self._released.get(self._key(says, terms), {}).values())

    def _key(self, says: _Says, terms: RoundContext) -> _Key:
        base = b"" if self._any_base else terms.manifest.base_digest
        return says, _digest_of(terms.job.schema), base


def _digest_of(schema: Schema) -> bytes:
    return sha256(schema.header()).digest()


def _average(terms: RoundContext, owners: Collection[str]) -> Average:
    least, most = terms.weight(1), terms.weight(MAX_EXAMPLES)
    return Average(frozenset(owners), least, most, terms.may_be_capped)
