"""Remembers what each release is an average of, and refuses one that may not stand beside the others.

What a release says is of two kinds, and like is compared with like: the tensors of a training with the tensors of
every training from the same base, and metrics with the metrics of every release that starts from the same base,
whatever its phase. With `any_base` there is one kind: every release of a schema is compared with every other.

Counts of statistics are compared with counts, by rules of their own (`statistics_overlap`).

It is read off what the aggregator has signed when it starts, so there is no table of it to be changed.
"""

import threading
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256

from aggregator_node.rounds.statistics_overlap import StatisticsOverlap
from aggregator_node.rounds.upload import RoundContext
from cairn.errors import WrongState
from cairn.model.schema import Schema
from cairn.protocol.aggregation import Aggregation, aggregation_to_pb
from cairn.protocol.limits import MAX_EXAMPLES
from cairn.v1 import round_pb2 as pb


@dataclass(frozen=True)
class Average:
    """What an average is over: the counted owners, and how much each may count.

    `least` and `most` are the smallest and the largest weight of one update, and `how` names what becomes of
    updates. `may_count_otherwise` says whether the same updates may count otherwise another time, because of the
    others' weights or values.
    """

    owners: frozenset[str]
    least: int
    most: int
    how: bytes
    may_count_otherwise: bool


def are_different(average: Average, earlier: Iterable[Average]) -> bool:
    """Whether an average and earlier ones of the same quantities together would tell of too few owners.

    Averages over S and over S without v tell what v alone contributed; so do several sets that overlap,
    each differing from the others by many; and equal and unequal shares in the same updates are two
    equations for them. Comparable releases therefore count the same owners in the same way, or have
    nobody in common: then no sum of them is over fewer owners than one of them. Releases that are not
    comparable are kept apart by the groups of a job, where it has some (aggregator_node/admission.py).

    A mean and a trimmed mean of the same updates tell what was trimmed, so another rule is another average. Where
    weights may be capped, or a rule shortens, selects or weighs updates by their values, or draws buckets, the same
    owners never count in the same way for sure: one that says another number of examples, or pushes another update,
    moves what others count for. Whether it did would itself tell of others, so it is not looked at. A norm that bounds
    each update by itself is no exception: with half the learning rate all updates are half as long, and if only the
    longest was shortened, twice the one average less the other is what it was shortened by.
    """
    return any(
        average.owners & other.owners and (average != other or average.may_count_otherwise)
        for other in earlier
    )


def check_difference(average: Average, earlier: Iterable[Average]) -> None:
    """Raise WrongState where an average is different from an earlier one that it overlaps with."""
    if are_different(average, earlier):
        raise WrongState(
            "an earlier release from this model counts some of these owners together with others, weights or combines"
            " them otherwise, or does so by a rule that selects, weighs or draws (also where the bounds of examples let"
            " one outweigh the others, so that weights may be capped): several such averages together would tell of"
            " single owners. A training may start from another model (seed)",
            pb.REASON_COHORT_DIFFERENCE,
        )


class _Says(Enum):
    """What is compared with its like."""

    TENSORS = "tensors"
    METRICS = "metrics"
    ANYTHING = "anything"


_Key = tuple[_Says, bytes, bytes]  # the digests of the schema and of the base, if it matters


class ReleaseOverlap:
    """Every method may be called from any thread."""

    def __init__(self, *, any_base: bool, max_statistics: int = 1) -> None:
        """With `any_base`, releases of one schema are compared whatever their bases and phases are.

        A column is released in so many statistics at the most.
        """
        self._any_base = any_base
        self._statistics = StatisticsOverlap(max_statistics)
        self._lock = threading.RLock()
        self._released: defaultdict[_Key, dict[bytes, Average]] = defaultdict(dict)

    def check(self, context: RoundContext, owners: Collection[str]) -> bool:
        """Whether a release over these owners may carry its metrics, beside the earlier ones.

        Raises WrongState where there may be no such release. A training whose tensors may stand beside the others
        and whose metrics may not leaves without metrics; of an evaluation nothing would be left, so it is refused.
        Statistics have no metrics.
        """
        if context.job.statistics is not None:
            with self._lock:
                self._statistics.check(context, owners)
            return False
        must = self._must_say(context)
        with self._lock:
            check_difference(_average(context, owners, must), self._earlier(must, context))
            metrics = _average(context, owners, _Says.METRICS)
            return not are_different(metrics, self._earlier(_Says.METRICS, context))

    def add(
        self,
        manifest_digest: bytes,
        context: RoundContext,
        owners: Collection[str],
        *,
        has_metrics: bool,
    ) -> bool:
        """Check and remember in one step, so that no two releases pass together; returns as `check` does."""
        with self._lock:
            has_metrics &= self.check(context, owners)
            self.remember(manifest_digest, context, owners, has_metrics=has_metrics)
        return has_metrics

    def remember(
        self,
        manifest_digest: bytes,
        context: RoundContext,
        owners: Collection[str],
        *,
        has_metrics: bool,
    ) -> None:
        """Remember a release that is made, or was made before this process began."""
        with self._lock:
            if context.job.statistics is not None:
                self._statistics.remember(manifest_digest, context, owners)
                return
            for says in {self._must_say(context)} | ({_Says.METRICS} if has_metrics else set()):
                average = _average(context, owners, says)
                self._released[self._key(says, context)][manifest_digest] = average

    def forget(self, manifest_digest: bytes, context: RoundContext) -> None:
        """The round is not released after all."""
        with self._lock:
            self._statistics.forget(manifest_digest, context)
            for says in _Says:
                self._released[self._key(says, context)].pop(manifest_digest, None)

    def _must_say(self, context: RoundContext) -> _Says:
        """What a release says in any case. An evaluation counts as one with metrics, though it may have none."""
        if self._any_base:
            return _Says.ANYTHING
        return _Says.TENSORS if context.manifest.trains else _Says.METRICS

    def _earlier(self, says: _Says, context: RoundContext) -> set[Average]:
        return set(self._released.get(self._key(says, context), {}).values())

    def _key(self, says: _Says, context: RoundContext) -> _Key:
        base = b"" if self._any_base else context.manifest.base_digest
        return says, _digest_of(context.job.schema), base


def _digest_of(schema: Schema) -> bytes:
    return sha256(schema.header()).digest()


def _average(context: RoundContext, owners: Collection[str], says: _Says) -> Average:
    """Metrics are averaged as weights are by the plain mean, whatever becomes of the tensors.

    Where everything is compared, an evaluation counts as the trainings of its job do.
    """
    least, most = context.weight(1), context.weight(MAX_EXAMPLES)
    how, may_count_otherwise = b"", context.may_be_capped
    if says is not _Says.METRICS:
        aggregation = context.job.aggregation
        if aggregation != Aggregation():
            how = aggregation_to_pb(aggregation).SerializeToString(deterministic=True)
        may_count_otherwise |= aggregation.looks_at_values
    return Average(frozenset(owners), least, most, how, may_count_otherwise)
