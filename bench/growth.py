"""Measures whether the aggregator's memory grows with the owners."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.federated import run_federation
from bench.figures import Figures, megabytes
from bench.work import Work


def measure_growth(size: int, owners: Sequence[int]) -> Figures:
    """Run a model of `size` megabytes once for each number of owners."""
    peaks = {}
    for count in owners:
        with tempfile.TemporaryDirectory(prefix="bench-") as home:
            rounds = run_federation(Path(home), Work(size, count, rounds=1))
        peaks[count] = megabytes(rounds.peak_bytes["aggregator"])
    return {"megabytes": size, **growth_of(peaks)}


def growth_of(peaks: Mapping[int, float]) -> Figures:
    """The aggregator's peaks by the number of owners, and the largest over the smallest."""
    return {
        "aggregator_peak_rss_mb": {str(owners): peak for owners, peak in peaks.items()},
        "ratio": round(max(peaks.values()) / min(peaks.values()), 3),
    }
