"""The average of what owners report of their models."""

import random
import sys
from fractions import Fraction
from itertools import permutations

from aggregator_node.aggregation.mean import MAX_WEIGHT
from aggregator_node.aggregation.metrics import average_metrics


def test_metrics_are_the_exact_weighted_mean_rounded_once_to_twelve_bits_of_their_size() -> None:
    generator = random.Random(5)  # data of a test, no secret
    reports = [({"loss": generator.uniform(-1, 1)}, generator.randint(1, 1000)) for _ in range(50)]
    exact = sum(Fraction(m["loss"]) * w for m, w in reports) / sum(w for _, w in reports)
    size = sum(abs(m["loss"]) * w for m, w in reports) / sum(w for _, w in reports)
    assert 0.5 < size < 1
    assert average_metrics(reports) == {"loss": round(exact * 2**12) / 2**12}


def test_metrics_do_not_depend_on_the_order_of_the_reports() -> None:
    reports = [({"loss": 1e300}, 1), ({"loss": 1.0}, 1), ({"loss": -0.9e300}, 1)]
    orders = [average_metrics(list(order)) for order in permutations(reports)]
    assert orders[1:] == orders[:-1]


def test_a_metric_that_takes_the_others_away_does_not_have_the_rest_said_more_precisely() -> None:
    """The unit is that of the values and not of what is left of them."""
    reports = [({"loss": 0.7123456}, 1), ({"loss": 0.3987654}, 1), ({"loss": -1.111}, 1)]
    assert average_metrics(reports) == {"loss": 0.0}


def test_metrics_of_zero_have_a_mean_of_zero() -> None:
    assert average_metrics([({"loss": 0.0}, 1), ({"loss": -0.0}, 1)]) == {"loss": 0.0}


def test_the_smallest_metrics_have_a_mean() -> None:
    assert average_metrics([({"loss": 5e-324}, 1)] * 2) == {"loss": 5e-324}


def test_metrics_at_the_edge_of_the_range_have_a_mean() -> None:
    largest = sys.float_info.max
    assert average_metrics([({"loss": largest}, MAX_WEIGHT)] * 3) == {"loss": largest}


def test_a_metric_that_one_owner_lacks_is_left_out() -> None:
    reports = [({"loss": 1.0, "b": 3.0, "a": 2.0}, 1), ({"a": 4.0, "b": 5.0}, 3)]
    averaged = average_metrics(reports)
    assert averaged == {"a": 3.5, "b": 4.5}
    assert list(averaged) == ["a", "b"]


def test_no_report_gives_no_metric() -> None:
    assert average_metrics([]) == {}
