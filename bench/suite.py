"""Measures everything that needs no peer, and writes it into bench/README.md."""

import sys

from bench.failure import BenchFailed
from bench.figures import Figures
from bench.growth import growth_of
from bench.report import Table, write_section
from bench.round import measure_round
from bench.tiny import measure_tiny
from bench.work import Work

_ROUNDS = 3
_OWNERS = (2, 4, 8, 16)  # of 100 MB
_LARGE = (1000, 2000)  # MB, of 2 owners
_COLUMNS = {
    "megabytes": "MB",
    "owners": "owners",
    "seconds_per_round": "s a round",
    "limit_seconds": "limit: TLS, s",
    "ratio": "times the limit",
    "wall_seconds_per_round": "with the checkpoint, s",
    "wall_ratio": "times the limit",
    "limit_grpc_seconds": "bare gRPC, s",
    "grpc_ratio": "times that",
    "limit_tcp_seconds": "limit: TCP, s",
    "first_round_seconds": "first round, s",
    "cpu_seconds_per_gb": "CPU-s per GB",
    "aggregator_peak_rss_mb": "aggregator, peak MB",
    "total_peak_rss_mb": "all processes, peak MB",
}


def measure_all() -> None:
    tiny = measure_tiny()
    works = [Work(100, owners, _ROUNDS) for owners in _OWNERS]
    works += [Work(size, 2, _ROUNDS) for size in _LARGE]
    table = Table(*_COLUMNS.values())
    peaks: dict[int, float] = {}
    failures: list[str] = []
    for work in works:
        print(f"{work.megabytes} MB, {work.owners} owners", file=sys.stderr)
        try:
            figures = measure_round(work)
        except BenchFailed as failed:  # what was measured before, and can be after, still counts
            failures.append(f"{work.megabytes} MB, {work.owners} owners: {failed}")
            table.add(work.megabytes, work.owners, "failed", *[""] * (len(_COLUMNS) - 3))
            continue
        table.add(*(figures[key] for key in _COLUMNS))
        if work.megabytes not in _LARGE:
            peaks[work.owners] = figures["aggregator_peak_rss_mb"]
    growth = [_growth_text(growth_of(peaks))] if peaks else []
    write_section("figures", [_tiny_text(tiny), str(table), *growth])
    if failures:
        raise BenchFailed("\n".join(failures))


def _tiny_text(tiny: Figures) -> str:
    return (
        f"The tutorial: {tiny['cold_start_seconds']} s from nothing to the model of its tenth round, then"
        f" {tiny['seconds_per_round'] * 1000:.1f} ms a round (median of {tiny['rounds']})."
    )


def _growth_text(growth: Figures) -> str:
    peaks = growth["aggregator_peak_rss_mb"]
    return (
        f"The aggregator's peak memory for 100 MB, with {', '.join(peaks)} owners: the largest is"
        f" {growth['ratio']} times the smallest."
    )
