"""The best release of a job: what is kept of it, when the job stops early, and what a crash leaves."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cairn.errors import CairnError
from cairn.model.safetensors_reader import read_model
from cairn.protocol.statements import from_envelope
from cairn.v1 import round_pb2 as pb
from coordinator import run_directory
from coordinator.best_release import BestSettings
from coordinator.cohort_selection import SelectedCohort
from coordinator.events import BestMetricMissing, RoundFinished, StoppedEarly
from coordinator.job import Base
from coordinator.round_runner import Ended
from coordinator.run_directory import Checkpoint, RunFolder
from coordinator.schedule import Step
from tests.unit.coordinator.test_job_runner import ABORT, START, Bench, history, value_of

BEST = BestSettings(metric="f1", better="higher", patience=2)
PEAK = [0.25, 0.75, 0.5, 0.5, 0.5]


class Judged(Bench):
    """A job whose evaluations have these values, each its round's; None where a round's has no such metric."""

    def __init__(
        self,
        path: Path,
        values: Sequence[float | None],
        *,
        best: BestSettings | None = BEST,
        released: int = 0,
    ) -> None:
        super().__init__(path, rounds=len(values), evaluates=True, best=best)
        self.ends = []
        for number, value in enumerate(values[released:], released + 1):
            self.ends.append(self.ended(number, pb.PHASE_TRAIN, {"f1": 100.0 - number}))
            metrics = {"loss": 1.0} if value is None else {"loss": 1.0, "f1": value}
            self.ends.append(self.ended(number, pb.PHASE_EVALUATE, metrics))

    def ended(self, number: int, phase: "pb.Phase", metrics: dict[str, float]) -> Any:
        """How a step ends, made once its turn comes: the file of a model is begun then."""

        def release() -> Ended:
            self.metrics = metrics
            return Ended(self.release(number, phase), pb.REASON_UNSPECIFIED, ())

        return release

    def carry_out(self, step: Step, selected: SelectedCohort, base: Base) -> Ended:
        end: Any = self.ends[0]
        self.ends[0] = end() if callable(end) else end
        return super().carry_out(step, selected, base)


def best_of(path: Path) -> tuple[int, int]:
    """The rounds that the best model and its statement are of."""
    text = (path / "best.json").read_text(encoding="utf-8")
    statement = pb.ReleaseStatement.FromString(from_envelope(text).body)
    return bytes(read_model(path / "best.safetensors")[1])[2], statement.round


def test_a_job_stops_early_and_keeps_its_best_release_beside_its_last(tmp_path: Path) -> None:
    bench = Judged(tmp_path / "run", PEAK)
    bench.run()
    assert [line["round"] for line in history(bench.path)] == [1, 2, 3, 4]
    assert [line["best"] for line in history(bench.path)] == [1, 2, 2, 2]
    assert [finished.is_best for finished in bench.told(RoundFinished)] == [
        True,
        True,
        False,
        False,
    ]
    assert (best_of(bench.path), value_of(bench.path)) == ((2, 2), 4)
    (stopped,) = bench.told(StoppedEarly)
    assert (stopped.released, stopped.rounds, stopped.best.round) == (4, 5, 2)
    assert bench.said_to_have_ended


def test_a_round_is_told_to_be_finished_once_its_best_model_is_on_the_disk(tmp_path: Path) -> None:
    bench = Judged(tmp_path / "run", [0.25, 0.75])
    seen, tell = [], bench._tell

    def look(event: Any) -> None:
        if isinstance(event, RoundFinished):
            seen.append(best_of(bench.path))
        tell(event)

    runner: Any = bench.runner
    runner._tell = look
    bench.run()
    assert seen == [(1, 1), (2, 2)]


def test_a_job_that_waits_long_enough_in_its_last_round_is_not_told_to_be_stopped(
    tmp_path: Path,
) -> None:
    bench = Judged(tmp_path / "run", [0.75, 0.5, 0.25])
    bench.run()
    assert len(history(bench.path)) == 3
    assert bench.told(StoppedEarly) == []
    assert not bench.said_to_have_ended  # it has all its rounds


def test_a_metric_of_the_training_judges_no_release(tmp_path: Path) -> None:
    """Each training says a higher f1 than any evaluation."""
    bench = Judged(tmp_path / "run", [0.5, None, 0.25])
    bench.run()
    assert [line["best"] for line in history(bench.path)] == [1, 1, 1]
    assert best_of(bench.path) == (1, 1)


def test_a_job_whose_first_evaluation_lacks_the_metric_stops_and_names_those_there_are(
    tmp_path: Path,
) -> None:
    bench = Judged(tmp_path / "run", [None, 0.5, 0.75])
    with pytest.raises(
        CairnError, match=r"round 1 has no f1, .*; it has loss\. Correct best\.metric"
    ):
        bench.run()
    assert len(history(bench.path)) == 1
    assert bench.told(BestMetricMissing) == []
    reopened = RunFolder(bench.path)  # what was released is kept, and the next run goes on
    checkpoint = reopened.checkpoint()
    reopened.close()
    assert checkpoint is not None
    assert (checkpoint.released, checkpoint.completed) == (1, False)


def test_a_job_that_had_the_metric_in_no_round_ends_all_the_same_where_none_is_left(
    tmp_path: Path,
) -> None:
    bench = Judged(tmp_path / "run", [None])
    bench.run()
    assert bench.told(BestMetricMissing) == [BestMetricMissing(1, "f1", ["loss"])]


def test_a_round_without_the_metric_is_said_once_in_a_row_and_does_not_count(
    tmp_path: Path,
) -> None:
    bench = Judged(tmp_path / "run", [0.75, None, None, 0.5, None, 0.5, 0.9])
    bench.run()
    assert bench.told(BestMetricMissing) == [
        BestMetricMissing(2, "f1", ["loss"]),
        BestMetricMissing(5, "f1", ["loss"]),
    ]
    assert len(history(bench.path)) == 6
    assert best_of(bench.path) == (1, 1)


def test_a_round_whose_evaluation_was_aborted_does_not_count(tmp_path: Path) -> None:
    bench = Judged(tmp_path / "run", [0.75, 0.9, 0.5, 0.5, 0.5])
    bench.ends[3] = ABORT  # the evaluation of round 2
    bench.run()
    assert [line["best"] for line in history(bench.path)] == [1, 1, 1, 1]
    assert bench.told(BestMetricMissing) == []


def test_a_job_that_looks_for_no_best_release_keeps_none(tmp_path: Path) -> None:
    bench = Judged(tmp_path / "run", PEAK, best=None)
    bench.run()
    assert [line["best"] for line in history(bench.path)] == [None] * 5
    assert not list(bench.path.glob("best.*"))


class _Killed(BaseException):
    """The process dies at a failpoint."""


def killed_at(name: str, time: int) -> Callable[[str], None]:
    """A failpoint at which the process dies when it comes there for this time."""
    reached = []

    def failpoint(point: str) -> None:
        if point == name:
            reached.append(point)
            if len(reached) == time:
                raise _Killed

    return failpoint


POINTS = [
    ("coordinator.model.saved", 2),
    ("coordinator.statement.saved", 2),
    ("coordinator.checkpoint.before", 2),
    ("coordinator.checkpoint.after", 2),
    ("coordinator.best.model_saved", 2),
    ("coordinator.best.statement_saved", 2),
    ("coordinator.model.saved", 3),
    ("coordinator.statement.saved", 3),
    ("coordinator.checkpoint.after", 3),
    ("coordinator.checkpoint.after", 4),
    ("coordinator.job.finished", 1),
]


@pytest.mark.parametrize(("point", "time"), POINTS, ids=[f"{p}@{t}" for p, t in POINTS])
def test_a_job_that_was_killed_ends_with_the_same_best_release_and_after_the_same_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, time: int
) -> None:
    path = tmp_path / "run"
    killed = Judged(path, [*PEAK])
    monkeypatch.setattr(run_directory, "failpoint", killed_at(point, time))
    with pytest.raises(_Killed):
        killed.run()
    monkeypatch.undo()

    resumed, checkpoint = taken_up(path, killed)
    resumed.run(checkpoint)
    lines = history(path)
    assert [(line["round"], line["best"]) for line in lines] == [(1, 1), (2, 2), (3, 2), (4, 2)]
    assert (best_of(path), value_of(path)) == ((2, 2), 4)
    assert not list(path.glob(".cairn-*"))


def taken_up(path: Path, killed: Judged) -> tuple[Judged, Checkpoint]:
    """The job with an aggregator that knows what a killed process was told of, and where its folder stands."""
    trained = sum(step.trains for step in killed.steps)
    resumed = Judged(path, [*PEAK], released=trained)
    checkpoint = resumed.folder.checkpoint()
    assert checkpoint is not None
    last = resumed.release(trained)
    assert last.model is not None
    last.model.discard()
    resumed.status.released = resumed.status.last_round = trained
    resumed.status.last_statement.CopyFrom(last.signed)
    runner: Any = resumed.runner
    runner._ledger.cohort_of = lambda _digest: ["alice", "bob"]
    if checkpoint.round < trained:  # its evaluation is opened again, and ends as it did
        metrics = {"f1": PEAK[trained - 1]}
        resumed.ends.insert(0, resumed.ended(trained, pb.PHASE_EVALUATE, metrics))
    return resumed, checkpoint


def test_the_best_release_of_a_killed_run_is_not_another_where_its_evaluation_cannot_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the best is written before it is decided for good."""
    path = tmp_path / "run"
    killed = Judged(path, [*PEAK])
    monkeypatch.setattr(run_directory, "failpoint", killed_at("coordinator.checkpoint.before", 2))
    with pytest.raises(_Killed):
        killed.run()
    monkeypatch.undo()
    resumed, checkpoint = taken_up(path, killed)
    resumed.ends[0] = ABORT
    resumed.run(checkpoint)
    assert [line["best"] for line in history(path)] == [1, 1, 3, 3, 3]
    assert best_of(path) == (3, 3)


def test_a_job_that_stopped_early_has_no_other_round_when_its_owners_are_dismissed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run"
    first = Judged(path, [*PEAK])
    first.run()
    again, checkpoint = taken_up(path, first)
    assert checkpoint.completed
    more_patient = BestSettings(metric="f1", better="higher", patience=9)
    job: Any = again.runner
    job._job.best = more_patient
    again.run(checkpoint)
    assert again.steps == []
    assert len(history(path)) == 4


def test_a_checkpoint_without_a_best_release_is_read_and_the_judging_begins(tmp_path: Path) -> None:
    """As an earlier version has written it, or a job that looked for none."""
    path = tmp_path / "run"
    first = Judged(path, [*PEAK[:1], 0.9], best=None)
    first.run()
    assert START.best is None
    again, checkpoint = taken_up(path, first)
    assert checkpoint.best is None
    again.run(Checkpoint(START.job, START.job_digest, checkpoint.round, checkpoint.released))
    assert [line["best"] for line in history(path)] == [None, None, 3, 3, 3]
