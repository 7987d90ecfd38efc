"""What a job of statistics may count, the tensors that follow, and counts that cannot be true."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cairn.errors import InvalidMessage, UpdateRefused
from cairn.model.schema import Schema
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.messages import JobSpec, job_spec_from_bytes, job_spec_to_bytes
from cairn.protocol.statistics import (
    MAX_COLUMNS,
    MOST,
    STEPS,
    Column,
    Counts,
    Statistics,
    base_digest_of,
    check_counts,
    counts_of,
    schema_of,
    statistics_from_words,
    statistics_in_words,
)
from cairn.protocol.words import reason_word
from cairn.v1 import round_pb2 as pb

AGE, SIZE = Column("age", 0.0, 100.0, 3), Column("tumour size", -1.5, 2.0, 1)
STATISTICS = Statistics((AGE, SIZE), 10)
COUNTED = Aggregation(pb.CONTENT_STATISTICS, pb.RULE_SUM)
SPEC = JobSpec(
    federation="clinics",
    name="figures",
    task="tumours",
    settings={},
    owners=("alice", "bob", "carol"),
    floor=3,
    rounds=1,
    weighting=pb.WEIGHTING_EQUAL,
    schema=schema_of(STATISTICS),
    round_deadline_seconds=60,
    min_examples=1,
    max_examples=100,
    aggregation=COUNTED,
    statistics=STATISTICS,
)
HALF = STEPS // 2


def test_the_tensors_of_a_job_follow_from_its_columns() -> None:
    listed = [str(tensor) for tensor in schema_of(STATISTICS).tensors]
    assert listed == [
        "age.histogram I64[5]",
        "age.moments I64[3]",
        "tumour size.histogram I64[3]",
        "tumour size.moments I64[3]",
    ]


def test_a_job_of_statistics_is_read_as_what_it_was() -> None:
    assert job_spec_from_bytes(job_spec_to_bytes(SPEC)) == SPEC


def test_what_the_ledger_says_of_a_job_is_read_back() -> None:
    assert statistics_from_words(statistics_in_words(STATISTICS)) == STATISTICS


@pytest.mark.parametrize(
    "words",
    [None, [], {}, {"columns": []}, {"columns": {"age": [0]}, "min_cell": 10},
     {"columns": {"age": [0, 100, 10.5]}, "min_cell": 10},
     {"columns": {"age": [0, 100, 10]}, "min_cell": "10"},
     {"columns": {"age": [0, 100, 10]}},
     {"columns": {"age": [10**400, 1, 10]}, "min_cell": 10}],
)  # fmt: skip
def test_a_ledger_that_says_nothing_of_the_kind_is_refused(words: Any) -> None:
    with pytest.raises(InvalidMessage, match="cannot be understood"):
        statistics_from_words(words)


def other_schema(spec: JobSpec) -> JobSpec:
    return replace(spec, schema=Schema.of(spec.schema.tensors[1:]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: replace(s, statistics=None), "says what is counted, and no other job"),
        (lambda s: replace(s, aggregation=Aggregation()), "says what is counted, and no other job"),
        (lambda s: replace(s, rounds=2), "one round, no groups and no settings"),
        (lambda s: replace(s, settings={"lr": 0.1}), "one round, no groups and no settings"),
        (other_schema, "not that of its columns"),
        (lambda s: replace(s, encoding=pb.ENCODING_INT8_DELTAS), "they travel whole"),
        (lambda s: replace(s, weighting=pb.WEIGHTING_EXAMPLES), 'wants weighting = "equal"'),
        (lambda s: replace(s, aggregation=Aggregation(pb.CONTENT_STATISTICS)), "their rule is sum"),
        (
            lambda s: replace(
                s, aggregation=replace(COUNTED, optimizer=pb.OPTIMIZER_SGD,
                                       optimizer_numbers={"lr": 1, "momentum": 0})
            ),
            "without an optimizer",
        ),
    ],
)  # fmt: skip
def test_a_job_whose_parts_do_not_go_together_is_refused(
    change: Callable[[JobSpec], JobSpec], words: str
) -> None:
    with pytest.raises(InvalidMessage, match=words):
        job_spec_from_bytes(job_spec_to_bytes(change(SPEC)))


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        (Statistics((), 10), "1 to 1000 columns"),
        (Statistics((AGE,), 1), "min_cell = 1 must be 2"),
        (Statistics((SIZE, AGE), 10), "not sorted"),
        (Statistics((AGE, AGE), 10), "twice"),
        (Statistics((replace(AGE, name=""),), 10), "a column is called ''"),
        (Statistics((replace(AGE, name="a/b"),), 10), "a column is called 'a/b'"),
        (Statistics((replace(AGE, high=0.0),), 10), "the smaller comes first"),
        (Statistics((replace(AGE, low=float("nan")),), 10), "low = nan"),
        (Statistics((replace(AGE, high=float("inf")),), 10), "high = inf"),
        (Statistics((replace(AGE, bins=0),), 10), "bins = 0"),
        (Statistics((replace(AGE, bins=1001),), 10), "bins = 1001"),
        (Statistics((Column("age", 1.0, 1.0 + 2**-51, 100),), 10), "more bins than there are numbers"),
        (Statistics((AGE,) * (MAX_COLUMNS + 1), 10), "1 to 1000 columns"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_counted_are_refused(statistics: Statistics, words: str) -> None:
    spec = replace(SPEC, statistics=statistics)
    with pytest.raises(InvalidMessage, match=words):
        job_spec_from_bytes(job_spec_to_bytes(spec))


def test_the_base_of_a_job_is_a_model_of_zeros() -> None:
    schema = schema_of(STATISTICS)
    assert base_digest_of(schema) == schema.digest(bytes(schema.total_bytes))


def good() -> tuple[bytearray, Counts]:
    """Ten examples at the middle of `age`, and of `tumour size` none."""
    payload = bytearray(schema_of(STATISTICS).total_bytes)
    age = counts_of(STATISTICS, payload)["age"]
    age.moments[:] = [10, 0, 0]
    age.histogram[2] = 10
    return payload, age


def test_good_counts_are_taken() -> None:
    check_counts(STATISTICS, good()[0], 10)


@pytest.mark.parametrize(
    ("moments", "cells", "words"),
    [
        ([11, 0, 0], [0, 0, 11, 0, 0], "counts 11 of 10 examples"),
        ([-1, 0, 0], [0, 0, -1, 0, 0], "counts -1"),
        ([10, 0, 0], [0, 0, 9, 0, 0], "does not add up to its 10"),
        ([10, 0, 0], [-1, 0, 11, 0, 0], "does not add up"),
        ([10, 0, 0], [1 << 62, 1 << 62, 1 << 62, 1 << 62, 10], "does not add up"),
        ([10, 10 * HALF + 1, 10 * HALF**2], [0, 0, 10, 0, 0], "cannot have"),
        ([10, -10 * HALF - 1, 10 * HALF**2], [0, 0, 10, 0, 0], "cannot have"),
        ([10, 0, 10 * HALF**2 + 1], [0, 0, 10, 0, 0], "cannot have"),
        ([10, 0, -1], [0, 0, 10, 0, 0], "cannot have"),
        ([10, 100, 999], [0, 0, 10, 0, 0], "has a negative variance"),
        ([0, 0, 1], [0, 0, 0, 0, 0], "cannot have"),
    ],
)
def test_counts_that_no_values_have_are_refused_to_their_owner_alone(
    moments: list[int], cells: list[int], words: str
) -> None:
    payload, age = good()
    age.moments[:], age.histogram[:] = moments, cells
    with pytest.raises(UpdateRefused, match=f"the column age .*{words}") as refusal:
        check_counts(STATISTICS, payload, 10)
    assert reason_word(refusal.value.reason) == "WRONG_TENSORS"


def test_the_sums_of_1024_owners_fit_into_64_bits() -> None:
    assert np.iinfo(np.int64).max >= 1024 * MOST
    payload, age = good()
    count = MOST // HALF**2 + 1
    age.moments[:], age.histogram[:] = [count, 0, count * HALF**2], [count, 0, 0, 0, 0]
    with pytest.raises(UpdateRefused, match="too large"):
        check_counts(STATISTICS, payload, count)
