"""A job from where its folder and the aggregator say it is to its end: what is kept before it is told."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cairn.errors import CairnError, Fenced, Unavailable
from cairn.ledger.chain import GENESIS
from cairn.model.safetensors_reader import read_model
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation, aggregation_to_pb
from cairn.protocol.messages import Manifest
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from coordinator.aggregator_client import OpenedRound, Page
from coordinator.backoff import Backoff
from coordinator.best_release import BestSettings
from coordinator.cohort_selection import SelectedCohort
from coordinator.events import (
    ChoiceDoubted,
    Event,
    JobStarted,
    MetricsMissing,
    OwnerNotCounted,
    OwnerRests,
    RoundAborted,
    RoundFinished,
)
from coordinator.job import Base
from coordinator.job_runner import JobRunner
from coordinator.release_download import Release
from coordinator.round_runner import Ended
from coordinator.run_directory import Checkpoint, RunFolder
from coordinator.schedule import Step
from tests.unit.owner_node.test_policy import MANIFEST

SCHEMA = Schema.of([TensorSpec("w", "F32", (1,))])
START = Checkpoint(job="tumours", job_digest="ab" * 32)
FIRST = b"\x00\x00\x80\x3f"  # 1.0
ABORT = Ended(None, pb.REASON_BELOW_FLOOR, ())


class Bench:
    """A runner on a real folder, between an aggregator and rounds that do as the test says."""

    def __init__(
        self,
        path: Path,
        *,
        rounds: int = 2,
        evaluates: bool = False,
        best: BestSettings | None = None,
    ) -> None:
        self.path = path
        self.folder = RunFolder(path)
        if self.folder.checkpoint() is None:
            self.folder.begin(START, SCHEMA, FIRST)
        self.events: list[Event] = []
        self.seen: list[
            Checkpoint | None
        ] = []  # on the disk, as each round was told to be finished
        self.steps: list[Step] = []
        self.registered = 0
        self.said_to_have_ended = False
        self.ends: list[Ended | CairnError] = []
        self.metrics: dict[str, float] = {}
        self.status = aggregator_pb2.RegisterJobResponse(floor=2)
        self.statements: dict[bytes, pb.ReleaseStatement] = {}
        self.collected: list[bytes] = []
        self.brought: list[bytes] = []
        self.stopping = threading.Event()
        self.trained_by: list[str] = []
        self.asked_for: list[tuple[Step, int]] = []  # and how many owners
        self.selection = SimpleNamespace(
            backoff=Backoff(),
            next=self.select,
            check=lambda _selected, _needed: None,
            was_trained_by=self.trained_by.extend,
        )
        spec = self.spec = SimpleNamespace(
            name="tumours",
            federation="clinics",
            rounds=rounds,
            owners=("alice", "bob"),
            groups=(),
            aggregation=Aggregation(),
            schema=SCHEMA,
            statistics=None,
        )
        job: Any = SimpleNamespace(
            spec=spec,
            spec_bytes=b"spec",
            evaluates=evaluates,
            gather_seconds=1.0,
            best=best,
            sampling=SimpleNamespace(groups=(("alice", "bob"),), number_of=lambda _cohort: None),
        )
        me: Any = self
        self.runner = JobRunner(job, self.folder, me, me, self._tell, self.stopping)

    def run(self, checkpoint: Checkpoint = START) -> None:
        try:
            self.runner.run(checkpoint)
        finally:
            self.folder.close()

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, RoundFinished):
            self.seen.append(self.folder.checkpoint())

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def release(self, number: int, phase: "pb.Phase" = pb.PHASE_TRAIN) -> Release:
        """A release whose one value is the number of its round."""
        values = bytes([0, 0, number, 0x40])
        statement = pb.ReleaseStatement(
            manifest_digest=bytes([number]) * 32,
            round=number,
            phase=phase,
            release_digest=SCHEMA.digest(values),
            aggregation=aggregation_to_pb(Aggregation()),
            contributors=2,
            metrics=self.metrics,
        )
        model = None
        if phase == pb.PHASE_TRAIN:
            model = self.folder.new_model(SCHEMA)
            model.write(values)
        return Release(statement, pb.Signed(body=statement.SerializeToString()), model)

    # The aggregator.

    address = "aggregator:1"

    def bring(self, base: Base) -> None:
        assert self.steps == []  # before the first round is opened
        self.brought.append(base.digest)

    def register(self, _spec: bytes, *, ended: bool = False) -> aggregator_pb2.RegisterJobResponse:
        self.registered += 1
        self.said_to_have_ended = ended
        return self.status

    def entries(self, _first: int) -> Page:
        head = pb.LedgerHead(federation="clinics", head=GENESIS)
        return Page((), head, pb.Signed(body=head.SerializeToString()))

    def opened(self, signed: pb.Signed) -> OpenedRound:
        manifest: Manifest = replace(MANIFEST, round=int(signed.body), phase=pb.PHASE_TRAIN)
        return OpenedRound(manifest, b"open", signed)

    def statement(self, signed: pb.Signed) -> pb.ReleaseStatement:
        return pb.ReleaseStatement.FromString(signed.body)

    # The rounds.

    def select(self, step: Step, needed: int, _waiting: object) -> SelectedCohort:
        self.asked_for.append((step, needed))
        return SelectedCohort(["alice"], frozenset(), (), ())

    def carry_out(self, step: Step, _selected: SelectedCohort, _base: Base) -> Ended:
        self.steps.append(step)
        end = self.ends.pop(0) if self.ends else None
        if isinstance(end, CairnError):
            raise end
        return end or Ended(self.release(step.round, step.phase), pb.REASON_UNSPECIFIED, ())

    def see_to_end(self, opened: OpenedRound, base: Base) -> Ended:
        step = Step(opened.manifest.round, opened.manifest.phase)
        return self.carry_out(step, SelectedCohort([], frozenset(), (), ()), base)

    def collect(self, manifest_digest: bytes, _schema: Schema) -> Release:
        self.collected.append(manifest_digest)
        return self.release(manifest_digest[0])


def history(path: Path) -> list[dict[str, Any]]:
    lines = (path / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def value_of(path: Path) -> int:
    """The round that the model of a folder is of."""
    return bytes(read_model(path / "model.safetensors")[1])[2]


def test_a_round_is_told_to_be_finished_once_its_model_its_line_and_its_checkpoint_are_on_the_disk(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path / "run")
    bench.run()
    assert [finished.release for finished in bench.told(RoundFinished)] == [1, 2]
    assert [(seen.round, seen.released, seen.completed) for seen in bench.seen if seen] == [
        (1, 1, False),
        (2, 2, False),
    ]
    assert [line["round"] for line in history(bench.path)] == [1, 2]
    assert value_of(bench.path) == 2
    done = json.loads((bench.path / "checkpoint.json").read_text(encoding="utf-8"))
    assert done["completed"]


def test_a_round_is_finished_after_its_evaluation_with_the_metrics_of_both(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", rounds=1, evaluates=True)
    bench.metrics = {"loss": 0.5}
    bench.run()
    assert [step.phase for step in bench.steps] == [pb.PHASE_TRAIN, pb.PHASE_EVALUATE]
    assert len(bench.seen) == 1
    line = history(bench.path)[0]
    assert (line["evaluation"], line["metrics"]) == ("released", {"loss": 0.5})


def test_the_history_says_why_a_round_has_no_evaluation(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", rounds=1, evaluates=True)
    train = Ended(bench.release(1), pb.REASON_UNSPECIFIED, ())
    bench.ends = [train, ABORT]
    bench.run()
    assert history(bench.path)[0]["evaluation"] == "BELOW_FLOOR"


def test_an_aborted_training_burns_its_number_and_is_told(tmp_path: Path) -> None:
    excluded = pb.Exclusion(owner="bob", reason=pb.REASON_NOT_COUNTED)
    bench = Bench(tmp_path / "run", rounds=1)
    bench.ends = [replace(ABORT, exclusions=(excluded,), resting={"bob": 9})]
    bench.run()
    assert [step.round for step in bench.steps] == [1, 2]
    assert bench.told(OwnerNotCounted) == [OwnerNotCounted(1, "bob", pb.REASON_NOT_COUNTED)]
    assert bench.told(OwnerRests) == [OwnerRests(1, "bob", 9)]
    assert [aborted.step.round for aborted in bench.told(RoundAborted)] == [1]


def test_a_job_that_is_given_up_fetches_the_last_entries_of_the_ledger(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    bench.ends = [ABORT] * 3
    with pytest.raises(CairnError, match="3 rounds in a row"):
        bench.run()
    assert bench.registered == 2  # the second time, to see whether the job is still its own


@pytest.mark.parametrize("error", [Fenced("taken over"), Unavailable("away")])
def test_who_was_fenced_or_waited_in_vain_asks_the_aggregator_nothing_more(
    tmp_path: Path, error: CairnError
) -> None:
    bench = Bench(tmp_path / "run")
    bench.ends = [error]
    with pytest.raises(type(error)):
        bench.run()
    assert bench.registered == 1


def test_a_job_that_was_stopped_keeps_the_release_that_came_and_no_line_of_it(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path / "run")
    bench.selection.check = lambda _selected, _floor: bench.stopping.set()
    with pytest.raises(CairnError, match="goes on from the checkpoint"):
        bench.run()
    assert value_of(bench.path) == 1
    assert bench.seen == []


@pytest.mark.parametrize("is_saved", [False, True], ids=["before the model", "after the model"])
def test_a_release_that_came_before_a_crash_is_fetched_again_and_its_round_finished(
    tmp_path: Path, *, is_saved: bool
) -> None:
    bench = Bench(tmp_path / "run", rounds=1)
    bench.status.released = bench.status.last_round = 1
    lost = bench.release(1)
    assert lost.model is not None
    if is_saved:
        lost.model.keep()
    else:
        lost.model.discard()
    bench.status.last_statement.CopyFrom(lost.signed)
    mirror: Any = bench.runner
    mirror._ledger.cohort_of = lambda _digest: ["alice", "bob"]
    bench.run()
    assert bench.collected == [bytes([1]) * 32]
    assert bench.trained_by == ["alice", "bob"]
    assert (bench.steps, value_of(bench.path)) == ([], 1)
    assert [line["round"] for line in history(bench.path)] == [1]


def test_a_model_that_is_not_the_last_release_is_fetched_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", rounds=1)
    release = bench.release(1)
    assert release.model is not None
    release.model.discard()
    bench.status.released = bench.status.last_round = 1
    bench.status.last_statement.CopyFrom(release.signed)
    bench.run(replace(START, round=1, released=1))
    assert (bench.collected, value_of(bench.path)) == ([bytes([1]) * 32], 1)


def test_a_release_that_is_in_the_folder_is_not_fetched_again(tmp_path: Path) -> None:
    first = Bench(tmp_path / "run", rounds=1)
    first.run()
    again = Bench(tmp_path / "other", rounds=1)
    release = again.release(1)
    assert release.model is not None
    again.folder.save_release(release.signed, release.model)
    again.status.released = again.status.last_round = 1
    again.status.last_statement.CopyFrom(release.signed)
    again.run(replace(START, round=1, released=1))
    assert (again.collected, again.steps) == ([], [])


def test_a_round_that_was_left_open_is_seen_to_its_end_before_another_is_opened(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path / "run", rounds=1)
    bench.status.last_round = 7
    bench.status.open_manifest.body = b"7"
    bench.run()
    assert [step.round for step in bench.steps] == [7]


def test_a_model_that_the_aggregator_needs_is_brought_before_the_first_round(
    tmp_path: Path,
) -> None:
    steps = Aggregation(optimizer=pb.OPTIMIZER_SGD, optimizer_numbers={"lr": 1, "momentum": 0})
    new, plain, under_way = (Bench(tmp_path / name, rounds=1) for name in ("new", "plain", "open"))
    under_way.status.last_round = 7
    under_way.status.open_manifest.body = b"7"
    for bench, aggregation in ((new, steps), (plain, Aggregation()), (under_way, steps)):
        bench.spec.aggregation = aggregation
        bench.run()
    assert [len(bench.brought) for bench in (new, plain, under_way)] == [1, 0, 0]


def test_an_aggregator_that_knows_fewer_releases_than_the_run_was_set_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    with pytest.raises(CairnError, match="knows 0 releases of tumours, this run has 1"):
        bench.run(replace(START, round=1, released=1))
    assert bench.told(JobStarted) == []


def test_that_metrics_are_missing_is_said_once_in_a_row(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", rounds=4)
    ends = []
    for number, metrics in enumerate(({}, {"loss": 0.5}, {}, {}), 1):
        bench.metrics = metrics
        ends.append(Ended(bench.release(number), pb.REASON_UNSPECIFIED, ()))
    bench.ends = [*ends]
    bench.run()
    assert bench.told(MetricsMissing) == [MetricsMissing(3)]


KRUM = Aggregation(rule=pb.RULE_MULTI_KRUM, rule_numbers={"byzantine": 1, "select": 2})


def owners_of(bench: Bench, count: int) -> None:
    bench.spec.aggregation = KRUM
    bench.runner._job.sampling.groups = (tuple(f"owner{n}" for n in range(count)),)  # type: ignore[misc]  # a fake


def test_a_training_waits_for_as_many_owners_as_its_rule_needs_and_an_evaluation_for_the_floor(
    tmp_path: Path,
) -> None:
    """Multi-Krum needs 2 * byzantine + 3 (Blanchard et al. 2017)."""
    bench = Bench(tmp_path / "run", rounds=1, evaluates=True)
    owners_of(bench, 7)
    bench.run()
    assert bench.asked_for == [(Step(1, pb.PHASE_TRAIN), 5), (Step(1, pb.PHASE_EVALUATE), 2)]


def test_a_job_whose_owners_can_never_be_enough_for_its_rule_ends_before_it_waits_for_any(
    tmp_path: Path,
) -> None:
    """The aggregator's floor of 3 is above the job's, and the rule selects 2."""
    bench = Bench(tmp_path / "run")
    owners_of(bench, 7)
    bench.status.floor = 3
    with pytest.raises(
        CairnError, match="would average over 2, and the floor is 3: take more owners"
    ):
        bench.run()
    assert bench.asked_for == []


def test_a_choice_that_does_not_do_what_its_name_promises_is_told_once_at_the_start(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path / "run")
    owners_of(bench, 5)
    bench.spec.aggregation = replace(KRUM, rule_numbers={"byzantine": 1, "select": 5})
    bench.run()
    told = [type(event) for event in bench.events]
    assert told[:2] == [JobStarted, ChoiceDoubted]
    assert told.count(ChoiceDoubted) == 1
