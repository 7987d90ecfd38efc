"""Measures a round: what it takes, and what the machine takes for the same bytes, before and after."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.failure import BenchFailed
from bench.federated import Rounds, run_federation
from bench.figures import Figures, megabytes
from bench.limit import LimitSeconds, measure_limit
from bench.work import Work

_LIMITS_BEFORE, _LIMITS_AFTER = 2, 2


def measure_round(work: Work, directory: Path | None = None) -> Figures:
    """Measure the work. `directory` keeps its files; it must be empty."""
    if directory is not None and directory.exists() and any(directory.iterdir()):
        raise BenchFailed(f"{directory} is not empty: name a new directory for the run's files")
    seconds = LimitSeconds()
    with _home(directory) as home:
        measure_limit(work, seconds, _LIMITS_BEFORE)
        rounds = run_federation(home, work)
        measure_limit(work, seconds, _LIMITS_AFTER)
    return _figures(work, rounds, seconds)


@contextmanager
def _home(directory: Path | None) -> Iterator[Path]:
    if directory is not None:
        yield directory.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        yield Path(temporary)


def _figures(work: Work, rounds: Rounds, limit: LimitSeconds) -> Figures:
    seconds = rounds.median_seconds
    return {
        "megabytes": work.megabytes,
        "owners": work.owners,
        "rounds": work.rounds,
        "weighting": work.weighting,
        "seconds_per_round": round(seconds, 4),
        "seconds_each": [round(each, 4) for each in rounds.seconds],
        "wall_seconds_per_round": round(rounds.median_wall_seconds, 4),
        "first_round_seconds": round(rounds.first_seconds, 4),
        "limit_seconds": round(limit.of("tls"), 4),
        "limit_tcp_seconds": round(limit.of("tcp"), 4),
        "limit_grpc_seconds": round(limit.of("grpc"), 4),
        "ratio": round(seconds / limit.of("tls"), 3),
        "grpc_ratio": round(seconds / limit.of("grpc"), 3),
        "wall_ratio": round(rounds.median_wall_seconds / limit.of("tls"), 3),
        "bytes_per_round": work.bytes_per_round,
        "cpu_seconds_per_round": round(rounds.cpu_seconds, 3),
        "cpu_seconds_per_gb": round(rounds.cpu_seconds / work.bytes_per_round * 1e9, 3),
        "aggregator_peak_rss_mb": megabytes(rounds.peak_bytes["aggregator"]),
        "total_peak_rss_mb": megabytes(rounds.total_peak_bytes),
        "peak_rss_mb": {role: megabytes(peak) for role, peak in rounds.peak_bytes.items()},
    }
