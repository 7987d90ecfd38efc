"""Runs the same work by Cairn and by its peers in turns, and says how many times as long each takes."""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.failure import BenchFailed
from bench.federated import run_federation
from bench.figures import Figures, megabytes
from bench.peers.flower import FLOWER
from bench.peers.nvflare import NVFLARE, NVFLARE_POLLING
from bench.peers.peer import Peer, PeerRounds
from bench.report import Table, write_section
from bench.work import Work

_PEERS = (FLOWER, NVFLARE, NVFLARE_POLLING)
_OURS = "Cairn, mTLS"
_TURNS = 2  # of each, one after the other: what disturbs this machine disturbs all of them


def compare(size: int, owners: int, rounds: int) -> Figures:
    """Measure a model of `size` megabytes. A peer that cannot be measured has an `error` instead."""
    work = Work(size, owners, rounds)
    seconds: dict[str, list[float]] = {name: [] for name in (_OURS, *(p.name for p in _PEERS))}
    peaks = dict.fromkeys(seconds, 0)
    errors: dict[str, str] = {}
    for _ in range(_TURNS):
        for name, peer in ((_OURS, None), *((each.name, each) for each in _PEERS)):
            if name in errors:
                continue
            try:
                run = _run(peer, work)
            except BenchFailed as failed:
                if peer is None:
                    raise
                errors[name] = str(failed)
                print(f"{name}: {failed}", file=sys.stderr)
                continue
            seconds[name] += run.seconds
            peaks[name] = max(peaks[name], run.total_peak_bytes)
    ours = statistics.median(seconds[_OURS])
    systems = {
        name: {"error": errors[name]} if name in errors else _figures(each, peaks[name], ours)
        for name, each in seconds.items()
    }
    return {"megabytes": size, "owners": owners, "rounds": _TURNS * rounds, "systems": systems}


def _run(peer: Peer | None, work: Work) -> PeerRounds:
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as home:
        if peer is not None:
            return peer.run(peer.python(), Path(home), work)
        rounds = run_federation(Path(home), work)
        return PeerRounds(rounds.wall_seconds, rounds.total_peak_bytes)


def _figures(seconds: Sequence[float], peak: int, ours: float) -> Figures:
    median = statistics.median(seconds)
    return {
        "seconds_per_round": round(median, 4),
        "seconds_each": [round(each, 4) for each in seconds],
        "ratio": round(median / ours, 2),
        "total_peak_rss_mb": megabytes(peak),
    }


def write_comparison(compared: Sequence[Figures]) -> None:
    """Write the comparisons into bench/README.md."""
    table = Table("MB", "owners", "system", "s a round", "times ours", "all processes, peak MB")
    for one in compared:
        for name, each in one["systems"].items():
            shown = ("seconds_per_round", "ratio", "total_peak_rss_mb")
            cells = (
                [each[key] for key in shown] if "error" not in each else ["not measured", "", ""]
            )
            table.add(one["megabytes"], one["owners"], name, *cells)
    errors = {
        f"{name}: {each['error'].splitlines()[0]}"
        for one in compared
        for name, each in one["systems"].items()
        if "error" in each
    }
    write_section("peers", [str(table), *sorted(errors)])
