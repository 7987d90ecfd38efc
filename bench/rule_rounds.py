"""What whole rounds of each aggregation rule cost beside the mean's: every node a process, as in `bench/federated.py`.

The owners stay, and run one job after the other, each with an aggregator of its own, so that the peak of its memory is that
of this job. The jobs of all rules take turns, and every other turn is in reverse: what disturbs the machine disturbs all
of them. A job's first round is not timed.
"""

import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from bench.federated import Rounds, federation, follow_job
from bench.figures import Figures, megabytes
from bench.processes import Processes
from bench.report import Table, write_section
from bench.rules import numbers_of
from bench.work import MEGABYTE, Work, write_work
from cairn.protocol.words import word_of
from cairn.v1 import round_pb2 as pb

_MEAN = word_of(pb.Rule, pb.RULE_MEAN)
_TURNS = 2
_ROUNDS = 2  # of each job that are timed


def measure_rule_rounds(size: int, owners: int) -> Figures:
    """Seconds and CPU-seconds of a round and the aggregator's peak, by the rule's word."""
    works = _works(size, owners)
    measured: dict[str, list[Rounds]] = {each.rule or "": [] for each in works}
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as directory,
        federation(Path(directory), works[0]) as (nodes, commands),
    ):
        for work in works:
            print(f"{work.rule}, job {work.job}", file=sys.stderr)
            measured[work.rule or ""].append(_run(nodes, Path(directory), commands, work))
    figures = {rule: _figures(runs, size) for rule, runs in measured.items()}
    mean = figures[_MEAN]
    for each in figures.values():
        each["times_the_mean"] = round(each["seconds"] / mean["seconds"], 2)
        each["cpu_times_the_mean"] = round(each["cpu_seconds"] / mean["cpu_seconds"], 2)
    return figures


def write_rule_rounds(figures: Figures) -> None:
    """Write the figures into bench/README.md."""
    table = Table(
        "rule",
        "s a round",
        "times the mean",
        "CPU-s a round",
        "times",
        "aggregator, peak MB",
        "models",
    )
    for rule, each in figures.items():
        seconds = (each["seconds"], each["times_the_mean"])
        cpu = (each["cpu_seconds"], each["cpu_times_the_mean"])
        table.add(rule, *seconds, *cpu, each["aggregator_peak_rss_mb"], each["models"])
    write_section("rule rounds", [str(table)])


def _works(size: int, owners: int) -> list[Work]:
    """A job for every rule and turn; but for the sum, which adds gradients just as the mean adds."""
    numbers = numbers_of(owners, size * MEGABYTE // 4)
    rules = [(_MEAN, {}), *((word_of(pb.Rule, rule), each) for rule, each in numbers.items())]
    jobs, works = count(), list[Work]()
    for turn in range(_TURNS):
        for rule, given in rules if turn % 2 == 0 else reversed(rules):
            works.append(Work(size, owners, _ROUNDS, rule=rule, rule_numbers=given, job=next(jobs)))
    return works


def _run(nodes: Processes, home: Path, commands: Mapping[str, list[str]], work: Work) -> Rounds:
    write_work(home, work)
    out = home / f"out{work.job}"
    command = [str(out) if part == f"{home}/out" else part for part in commands["coordinator"]]
    nodes.start("aggregator", commands["aggregator"])
    nodes.start("coordinator", command)
    rounds = follow_job(nodes, out, work)
    nodes.end("aggregator")
    shutil.rmtree(out)
    return rounds


def _figures(runs: list[Rounds], size: int) -> Figures:
    seconds = [each for run in runs for each in run.seconds]
    peak = megabytes(max(run.peak_bytes["aggregator"] for run in runs))
    return {
        "seconds": round(statistics.median(seconds), 2),
        "seconds_each": [round(each, 2) for each in seconds],
        "cpu_seconds": round(statistics.mean(run.cpu_seconds for run in runs), 2),
        "aggregator_peak_rss_mb": peak,
        "models": round(peak / size, 1),
    }
