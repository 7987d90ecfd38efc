"""What faults have found, each by its name. It failed before it was mended."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.conftest import Faultless
from tests.chaos.invariants import check, check_nothing_half_written
from tests.chaos.stage import Stage
from tests.unit.owner_node.round_bench import Bench


def test_an_error_after_a_release_was_recorded_does_not_take_it_back(
    stage: Stage, faultless: Faultless
) -> None:
    """An abort was recorded over it, and the next start called the state tampered with."""
    with stage.explained():
        stage.begin({"aggregator": "aggregator.release.after_commit=raise:ENOSPC@2"})
        stage.run_to_end()
        assert stage.restarts == []
        check(stage, faultless.model)
        stage.running["aggregator"].kill()
        stage.begin()
        stage.run_to_end()
        assert stage.restarts == []


@pytest.mark.parametrize(
    "point", ["aggregator.job.before_commit=", "aggregator.open.before_commit="]
)
def test_a_full_disk_at_the_aggregator_is_waited_for_and_does_not_end_the_job(
    point: str, stage: Stage, faultless: Faultless
) -> None:
    """The aggregator answered INTERNAL, and the coordinator gave up."""
    with stage.explained():
        stage.begin({"aggregator": f"{point}raise:ENOSPC@1"})
        stage.run_to_end()
        assert stage.restarts == []
        assert "the state cannot be written" in stage.output_of("aggregator")
        assert "Traceback" not in stage.output_of("aggregator")
        check(stage, faultless.model)


def test_a_commit_that_the_disk_lost_ends_the_aggregator_with_the_release_in_place(
    stage: Stage, faultless: Faultless
) -> None:
    """The file was deleted; where the commit was kept all the same, nobody could collect it any more."""
    with stage.explained():
        stage.begin({"aggregator": "aggregator.release.before_commit=raise:EIO@2"})
        stage.run_to_end()
        assert stage.restarts == [("aggregator", 1)]
        assert "error: the disk failed (" in stage.output_of("aggregator")
        check(stage, faultless.model)


def test_a_coordinator_that_is_killed_while_it_collects_leaves_no_half_model_behind(
    stage: Stage, faultless: Faultless
) -> None:
    """Each such crash left a file as large as the model in the run's folder, for good."""
    with stage.explained():
        stage.begin({"coordinator": "coordinator.collect.partial=kill"})
        stage.run_to_end()
        assert len(stage.restarts) == 1
        check_nothing_half_written(stage)
        check(stage, faultless.model)


@pytest.mark.parametrize("call", [lambda r: r.settle(), lambda r: r.take_in(None)])
def test_the_thread_of_an_owners_rounds_outlives_an_end_that_it_cannot_record(
    call: Callable[[Any], None], tmp_path: Path
) -> None:
    """It died while it asked how a round had ended, and the owner took part in none any more."""
    bench = Bench(tmp_path)

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    outcomes: Any = bench.rounds._settlement
    outcomes.settle = outcomes.take_in = broken
    call(bench.rounds)
    bench.state.close()
