"""Statistics at a real aggregator, by raw calls: what is refused, and what is not in the released bytes."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
import pytest

from cairn.protocol.aggregation import Aggregation
from cairn.protocol.statistics import (
    STEPS,
    SUPPRESSED,
    Column,
    Counts,
    Statistics,
    counts_of,
    schema_of,
)
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.service.network import OWNERS, Ended, Job, Network, OpenRound, refused

PRECONDITION, INVALID = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
RELEASED = aggregator_pb2.ROUND_STATE_RELEASED
COHORT = OWNERS[:3]
_NUMBERS = itertools.count(1)
COUNTED = Aggregation(pb.CONTENT_STATISTICS, pb.RULE_SUM)
AGE, SIZE = Column("age", 0.0, 100.0, 6), Column("size", 0.0, 1.0, 2)
CELLS = [0, 40, 25, 2, 33, 19, 0, 0]  # of one owner


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    network = Network(tmp_path_factory.mktemp("statistics"), floor=3, lease_seconds=600)
    yield network
    network.stop()


@dataclass(frozen=True)
class Ward:
    """The aggregator, and a task of which no other test asks for statistics."""

    network: Network
    task: str

    def job(self, *columns: Column, min_cell: int = 10) -> Job:
        statistics = Statistics(columns, min_cell)
        return self.network.job(
            schema=schema_of(statistics),
            floor=3,
            rounds=1,
            task=self.task,
            aggregation=COUNTED,
            statistics=statistics,
        )


@pytest.fixture
def ward(network: Network) -> Ward:
    return Ward(network, f"task-{next(_NUMBERS)}")


def counts(cells: Sequence[int]) -> list[int]:
    """The count, the sum and the squares of values in the middles of these cells, and the cells."""
    inside = len(cells) - 2
    half = STEPS // 2
    steps = [-half, *(round((i + 0.5) * STEPS / inside) - half for i in range(inside)), half]
    pairs = list(zip(cells, steps, strict=True))
    return [sum(cells), sum(n * v for n, v in pairs), sum(n * v * v for n, v in pairs), *cells]


def update(of: Job, **columns: Sequence[int]) -> bytes:
    assert of.spec.statistics is not None
    payload = bytearray(of.spec.schema.total_bytes)
    for name, values in columns.items():
        here = counts_of(of.spec.statistics, payload)[name]
        here.moments[:], here.histogram[:] = values[:3], values[3:]
    return bytes(payload)


def opened(of: Job, cohort: Sequence[str] = COHORT) -> OpenRound:
    round_ = of.open(cohort)
    for owner in cohort:
        round_.join(owner)
    return round_


def run(of: Job, payload: bytes, cohort: Sequence[str] = COHORT) -> Ended:
    round_ = opened(of, cohort)
    for owner in cohort:
        round_.push(owner, payload, examples=1000)
    return round_.ends()


def released(of: Job, ended: Ended) -> dict[str, Counts]:
    assert ended.state == RELEASED
    assert of.spec.statistics is not None
    assert ended.statement.release_digest == of.spec.schema.digest(ended.payload)
    return counts_of(of.spec.statistics, ended.payload)


def test_a_release_is_the_sum_of_all_owners_without_small_cells(ward: Ward) -> None:
    figures = ward.job(AGE)
    ended = run(figures, update(figures, age=counts(CELLS)))
    age = released(figures, ended)["age"]
    count, total, squares = counts(CELLS)[:3]
    assert age.moments.tolist() == [3 * count, 3 * total, 3 * squares]
    shown = age.histogram.tolist()
    assert shown == [*[SUPPRESSED] * 5, 3 * 19, SUPPRESSED, SUPPRESSED]
    # Nowhere in the bytes, nor on the aggregator's disk.
    for number in (3 * 40, 3 * 25, 3 * 2, 3 * 33):
        assert number not in np.frombuffer(ended.payload, "<i8")
    kept = [path.read_bytes() for path in (ward.network.state / "releases").iterdir()]
    assert any(content.endswith(ended.payload) for content in kept)
    assert ended.statement.aggregation.content == pb.CONTENT_STATISTICS
    with refused(PRECONDITION, "all 1 rounds"):
        figures.open(COHORT, number=2)


def test_a_column_of_fewer_examples_than_a_cell_must_have_is_not_in_the_release(
    ward: Ward,
) -> None:
    figures = ward.job(AGE, SIZE)
    sent = update(figures, age=counts(CELLS), size=counts([0, 2, 1, 0]))
    columns = released(figures, run(figures, sent))
    assert columns["size"].moments.tolist() == [SUPPRESSED] * 3
    assert columns["size"].histogram.tolist() == [SUPPRESSED] * 4
    assert columns["age"].moments[0] == 3 * sum(CELLS)


def test_a_job_that_would_release_smaller_cells_than_the_aggregators_file_is_refused(
    ward: Ward,
) -> None:
    with refused(INVALID, "write min_cell = 10 or more in the job's file"):
        ward.job(AGE, min_cell=9)


def test_only_the_model_of_zeros_is_a_base_and_there_is_nothing_to_evaluate(
    ward: Ward,
) -> None:
    figures = ward.job(AGE)
    ones = b"\1" * figures.spec.schema.total_bytes
    with refused(INVALID, "its base is the model of zeros", "BASE_MISMATCH"):
        figures.open(COHORT, ones)
    ended = run(figures, update(figures, age=counts(CELLS)))
    with refused(INVALID, "there is no model to evaluate"):
        figures.open(COHORT, ended.payload, 1, pb.PHASE_EVALUATE)


def test_below_the_floor_there_are_no_statistics(ward: Ward) -> None:
    figures = ward.job(AGE)
    with refused(INVALID, "a cohort of 2 is below the floor of 3"):
        figures.open(COHORT[:2])
    round_ = opened(figures)
    for owner in COHORT[:2]:
        round_.push(owner, update(figures, age=counts(CELLS)), examples=1000)
    round_.decline(COHORT[2], pb.REASON_STOPPING)
    assert (round_.ends().state, round_.ends().reason) == (
        aggregator_pb2.ROUND_STATE_ABORTED,
        "BELOW_FLOOR",
    )


def test_no_two_releases_differ_by_one_owner_or_by_a_part_of_a_column_also_after_a_restart(
    ward: Ward,
) -> None:
    figures = ward.job(AGE)
    assert run(figures, update(figures, age=counts(CELLS))).state == RELEASED
    for is_restarted in (False, True):
        if is_restarted:
            ward.network.restart(kill=True)
        with refused(PRECONDITION, "would tell of single owners", "COHORT_DIFFERENCE"):
            ward.job(SIZE).open(OWNERS[:4])
        with refused(
            PRECONDITION,
            "was released as often as the aggregator's file allows",
            "COHORT_DIFFERENCE",
        ):
            ward.job(AGE).open(COHORT)
        with refused(
            PRECONDITION,
            "was released as often as the aggregator's file allows",
            "COHORT_DIFFERENCE",
        ):
            ward.job(Column("age", 0.0, 99.0, 6), SIZE).open(COHORT)
    other = ward.job(SIZE)
    assert run(other, update(other, size=counts([0, 20, 30, 0]))).state == RELEASED


def test_two_rounds_that_are_open_together_do_not_both_release(ward: Ward) -> None:
    one, two = ward.job(AGE), ward.job(AGE)
    rounds = [opened(one), opened(two)]
    sent = update(one, age=counts(CELLS))
    for round_ in rounds:
        for owner in COHORT:
            round_.push(owner, sent, examples=1000)
    ended = [round_.ends() for round_ in rounds]
    assert sorted(each.reason for each in ended) == ["COHORT_DIFFERENCE", "UNSPECIFIED"]


@pytest.mark.parametrize(
    "false",
    [
        [119, 0, 0, 0, 40, 25, 2, 33, 20, 0, 0],  # the cells are 120
        [120, 0, 0, -1, 40, 25, 2, 33, 21, 0, 0],
        [1001, 0, 0, 1001, 0, 0, 0, 0, 0, 0, 0],  # of 1000 examples
        [120, 1 << 40, 0, 0, 120, 0, 0, 0, 0, 0, 0],
        [120, 1 << 20, 5, 0, 120, 0, 0, 0, 0, 0, 0],
    ],
)
def test_counts_that_cannot_be_true_are_refused_and_the_others_told_no_more_than_that(
    ward: Ward, false: list[int]
) -> None:
    figures = ward.job(AGE)
    round_ = opened(figures, OWNERS[:4])
    with refused(INVALID, "the column age", "WRONG_TENSORS"):
        round_.push("dave", update(figures, age=false), examples=1000)
    for owner in COHORT:
        round_.push(owner, update(figures, age=counts(CELLS)), examples=1000)
    ended = round_.ends()
    assert ended.exclusions == {"dave": "NOT_COUNTED"}
    assert released(figures, ended)["age"].moments[0] == 3 * sum(CELLS)


def test_metrics_beside_statistics_are_not_released(ward: Ward) -> None:
    figures = ward.job(AGE)
    round_ = opened(figures)
    for owner in COHORT:
        sent = update(figures, age=counts(CELLS))
        round_.push(owner, sent, examples=1000, metrics={"patients": 3.0})
    assert dict(round_.ends().statement.metrics) == {}
