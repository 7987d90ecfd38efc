"""Which choices of a job are told to be doubtful, and which are not."""

import re

import pytest

from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation
from cairn.v1 import round_pb2 as pb
from coordinator.doubtful_choices import doubts

FLOOR = 3
PLAIN = Schema.of([TensorSpec("fc.weight", "F32", (2, 2))])
NORMED = Schema.of(
    [
        *PLAIN.tensors,
        TensorSpec("bn.running_mean", "F32", (2,)),
        TensorSpec("bn.running_var", "F32", (2,)),
    ]
)


def by(rule: "pb.Rule", **numbers: float) -> Aggregation:
    return Aggregation(rule=rule, rule_numbers=numbers)


def sgd(lr: float, momentum: float) -> Aggregation:
    return Aggregation(
        optimizer=pb.OPTIMIZER_SGD, optimizer_numbers={"lr": lr, "momentum": momentum}
    )


@pytest.mark.parametrize(
    ("aggregation", "owners", "words"),
    [
        (
            by(pb.RULE_TRIMMED_MEAN, trim=0.1),
            9,
            "trim = 0.1 of 9 owners leaves out nobody: write 0.12",
        ),
        (by(pb.RULE_TRIMMED_MEAN, trim=0.12), 9, None),
        (
            by(pb.RULE_BUCKETED_MEDIAN, bucket=3),
            5,
            "bucket = 3 makes one bucket of 5 owners, whose",
        ),
        (by(pb.RULE_BUCKETED_MEDIAN, bucket=3), 8, "makes 2 buckets of 8 owners, .*: three need 9"),
        (by(pb.RULE_BUCKETED_MEDIAN, bucket=3), 9, None),
        (
            by(pb.RULE_MULTI_KRUM, byzantine=0, select=5),
            5,
            "select = 5 of 5 owners leaves out nobody",
        ),
        (
            by(pb.RULE_MULTI_KRUM, byzantine=2, select=6),
            7,
            "byzantine = 2 false .*: select 5 or fewer",
        ),
        (by(pb.RULE_MULTI_KRUM, byzantine=2, select=5), 7, None),
        (by(pb.RULE_GEOMETRIC_MEDIAN, iterations=8, smoothing=1e-6), 3, "all count the same"),
        (by(pb.RULE_GEOMETRIC_MEDIAN, iterations=8, smoothing=1e-6), 4, None),
        (Aggregation(), 3, None),
    ],
    ids=str,
)
def test_a_rule_that_is_the_mean_of_so_many_owners_is_told_with_the_cure(
    aggregation: Aggregation, owners: int, words: str | None
) -> None:
    found = list(doubts(aggregation, PLAIN, {owners - 1, owners}, FLOOR))
    if words is None:
        assert found == []
    else:
        (sentence,) = found
        assert re.search(words, sentence)


@pytest.mark.parametrize(
    ("aggregation", "by_what"),
    [
        (sgd(0.5, 0.0), "optimizer sgd"),
        (sgd(1.0, 0.9), "optimizer sgd"),
        (
            Aggregation(optimizer=pb.OPTIMIZER_ADAM, optimizer_numbers={"lr": 0.01}),
            "optimizer adam",
        ),
        (by(pb.RULE_NORM_BOUNDED_MEAN, norm=5.0), "rule norm_bounded_mean"),
        (by(pb.RULE_CENTRED_CLIPPING, norm=5.0, iterations=1), "rule centred_clipping"),
    ],
    ids=str,
)
def test_running_statistics_that_are_taken_for_weights_are_told_with_the_cure(
    aggregation: Aggregation, by_what: str
) -> None:
    (sentence,) = doubts(aggregation, NORMED, {9}, FLOOR)
    assert sentence.startswith(f"{by_what} takes bn.running_mean and 1 more for weights")
    assert 'keeps=("*.running_*"' in sentence
    assert list(doubts(aggregation, PLAIN, {9}, FLOOR)) == []


@pytest.mark.parametrize(
    "aggregation", [Aggregation(), sgd(1.0, 0.0), by(pb.RULE_BUCKETED_MEDIAN, bucket=3)], ids=str
)
def test_running_statistics_that_are_averaged_as_before_are_no_cause_for_doubt(
    aggregation: Aggregation,
) -> None:
    assert list(doubts(aggregation, NORMED, {9}, FLOOR)) == []
