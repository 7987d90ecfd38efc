"""The average of metrics: the exact weighted mean, rounded once to 12 bits, whatever the job's rule is. Pure.

A binary64 has room for the values of several owners side by side: of accuracies c / n, where the n are known and have
no common factor, it would tell every c.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction

METRIC_BITS = 12


def average_metrics(reports: Sequence[tuple[Mapping[str, float], int]]) -> dict[str, float]:
    """The weighted mean of each metric that every report has, by name, to `METRIC_BITS`; every value is finite.

    A metric that one report lacks is left out: its mean would be over fewer owners than were counted.
    """
    if not reports:
        return {}
    shared = set.intersection(*(set(metrics) for metrics, _ in reports))
    return {
        name: _mean_metric([(Fraction(metrics[name]), weight) for metrics, weight in reports])
        for name in sorted(shared)
    }


def _mean_metric(terms: Sequence[tuple[Fraction, int]]) -> float:
    """The exact mean, rounded once to a multiple of 2**-METRIC_BITS of the terms' mean size, as a power of two.

    Of the size, and not of the mean itself: an owner that sends what the others' values add up to, with the other
    sign, would else have the rest said to as many bits again.
    """
    total = sum(weight for _, weight in terms)
    size = sum(abs(value) * weight for value, weight in terms) / total
    if not size:
        return 0.0
    exponent = math.frexp(float(size))[1]
    unit = Fraction(2) ** (exponent - METRIC_BITS)
    mean = sum(value * weight for value, weight in terms) / total
    limit = Fraction(sys.float_info.max)
    return float(max(-limit, min(limit, round(mean / unit) * unit)))
