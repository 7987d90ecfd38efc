"""What each aggregation rule costs beside the mean: the rule alone, in one process, on updates that lie in memory.

The updates are a base with noise: float32 values about as large as trained weights, which differ as after a round
of training. Each rule adds them all and hands its result out, twice; the faster time counts. CPU-seconds of one thread
are compared, since wall time says more about what else the machine does.

Memory is what a rule reckons for a model of the size, the updates that it holds and the peak of what it allocates
beside them, in models; the bench's own updates and its base are not a part of it, but for the held ones.

The noise of the private mean is drawn once a release, however many updates there are, so it is timed by itself as well.
"""

import time
import tracemalloc
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.discrete_gaussian import DiscreteGaussian
from aggregator_node.aggregation.key_stream import KeyStream, fresh_key
from aggregator_node.aggregation.private_mean import GRID
from aggregator_node.aggregation.rule import ReadBlock, Rule
from aggregator_node.aggregation.rules import RULES
from bench.figures import Figures
from bench.work import MEGABYTE, NOISE
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.words import word_of
from cairn.v1 import round_pb2 as pb

_SIGNIFICANT_BITS = 24
_FLOOR = 2
_RUNS = 2
_DRAWS = 10_000_000


def measure_rules(megabytes: int, owners: int) -> Figures:
    """Seconds, CPU-seconds and memory of every rule, by its word, and the CPU-seconds of noise alone."""
    schema = Schema.of([TensorSpec("t", "F32", (megabytes * MEGABYTE // 4,))])
    base, updates = _values(megabytes * MEGABYTE // 4, owners)
    figures: Figures = {}
    for rule in sorted(RULES):
        aggregation = Aggregation(
            rule=rule, rule_numbers=numbers_of(owners, base.size).get(rule, {})
        )
        working = RULES[rule](schema, aggregation, _FLOOR)
        cpu, wall = min(_timed(working, base, updates) for _ in range(_RUNS))
        model = schema.total_bytes
        reckoned = working.memory_bytes(schema) + working.held_updates(owners) * model
        figures[word_of(pb.Rule, rule)] = {
            "cpu_seconds": round(cpu, 3),
            "seconds": round(wall, 3),
            "memory_models": round((reckoned + _peak(working, base, updates)) / model, 2),
        }
    mean = figures[word_of(pb.Rule, pb.RULE_MEAN)]["cpu_seconds"]
    for measured in figures.values():
        measured["times_the_mean"] = round(measured["cpu_seconds"] / mean, 2)
    figures["noise_of_10_million"] = {
        "cpu_seconds": round(min(_seconds_of_noise() for _ in range(_RUNS)), 3)
    }
    return figures


def numbers_of(owners: int, elements: int) -> Mapping["pb.Rule", Mapping[str, float]]:
    """Of all rules that have some: for a fifth of attackers, and norms that shorten half of the updates, or so."""
    byzantine = max(0, min(owners // 5, (owners - 3) // 2))
    norm = NOISE * elements**0.5
    return {
        pb.RULE_NORM_BOUNDED_MEAN: {"norm": norm},
        pb.RULE_TRIMMED_MEAN: {"trim": 0.2},
        pb.RULE_BUCKETED_MEDIAN: {"bucket": 2},
        pb.RULE_MULTI_KRUM: {"byzantine": byzantine, "select": owners - byzantine},
        pb.RULE_GEOMETRIC_MEDIAN: {"iterations": 8, "smoothing": 1e-6},
        pb.RULE_CENTRED_CLIPPING: {"norm": norm, "iterations": 1},
        pb.RULE_PRIVATE_MEAN: {"norm": norm, "noise": 1.0, "epsilon": 1.0, "delta": 1e-5},
    }


def _values(count: int, owners: int) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    generator = np.random.default_rng(0)
    base = generator.standard_normal(count, np.float32) * np.float32(0.02)
    noise = (generator.standard_normal(count, np.float32) for _ in range(owners))
    return base, [base + each * np.float32(NOISE) for each in noise]


def _seconds_of_noise() -> float:
    values = np.zeros(_DRAWS, np.int64)
    noise = DiscreteGaussian(Fraction(GRID), KeyStream(fresh_key()))
    cpu = time.process_time()
    noise.add_to(values)
    return time.process_time() - cpu


def _timed(
    rule: Rule, base: NDArray[np.float32], updates: Sequence[NDArray[np.float32]]
) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    _combine(rule, base, updates)
    return time.process_time() - cpu, time.perf_counter() - wall


def _peak(rule: Rule, base: NDArray[np.float32], updates: Sequence[NDArray[np.float32]]) -> int:
    tracemalloc.start()
    try:
        _combine(rule, base, updates)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _combine(rule: Rule, base: NDArray[np.float32], updates: Sequence[NDArray[np.float32]]) -> None:
    rule.begin(lambda _: None, base.data.cast("B"))
    for update in updates:
        rule.add_blocks(_reading(update), 1)
    for _ in rule.result_blocks():
        pass
    rule.reset()


def _reading(update: NDArray[np.float32]) -> ReadBlock:
    def read(_: int, block: slice) -> tuple[NDArray[Any], int]:
        return update[block], _SIGNIFICANT_BITS

    return read
