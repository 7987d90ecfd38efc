"""Drives a job from where its folder and the aggregator say it is to its end."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import structlog

from cairn.errors import CairnError, Fenced, Unavailable, WrongState
from cairn.protocol.privacy import PrivacyBudget
from cairn.protocol.words import reason_word
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from coordinator import events
from coordinator.aggregator_client import AggregatorClient, OpenedRound
from coordinator.backoff import Backoff
from coordinator.best_watch import BestWatch
from coordinator.doubtful_choices import doubts
from coordinator.job import Base, Job
from coordinator.ledger_mirror import LedgerMirror
from coordinator.needed_owners import Needed, needed_in
from coordinator.release_download import Release
from coordinator.round_runner import Ended, RoundRunner
from coordinator.run_directory import Checkpoint, RunFolder
from coordinator.schedule import Schedule, Step
from coordinator.standing import Line, Standing

log = structlog.get_logger()


class JobRunner:
    """Runs one job in the calling thread."""

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        aggregator: AggregatorClient,
        rounds: RoundRunner,
        tell: events.Observer,
        stopping: threading.Event,
    ) -> None:
        self._job = job
        self._ledger = LedgerMirror(folder.path, job.spec.federation)
        self._folder = folder
        self._aggregator = aggregator
        self._rounds = rounds
        self._tell = tell
        self._stopping = stopping
        self._trains_with_metrics = False
        self._best = BestWatch(job.best, tell)

    def run(self, checkpoint: Checkpoint) -> None:
        """Run the job to its end. Raises CairnError with the reason where it cannot be ended."""
        status = self._aggregator.register(self._job.spec_bytes)
        self._ledger.bring_up_to_date(self._aggregator.entries)
        standing = self._take_up(status, checkpoint)
        is_new = not status.released and not status.HasField("open_manifest")
        if self._job.spec.aggregation.needs_base and is_new:
            self._rounds.bring(standing.base)
        self._tell(
            events.JobStarted(
                self._job.spec, self._aggregator.address, status.floor, standing.checkpoint.released
            )
        )
        spec, sizes = self._job.spec, {len(group) for group in self._job.sampling.groups}
        for sentence in doubts(spec.aggregation, spec.schema, sizes, status.floor):
            self._tell(events.ChoiceDoubted(sentence))
        try:
            self._carry_out_all(standing, status)
        except (Unavailable, Fenced):
            raise
        except CairnError:  # stopped, or given up
            self._part()
            raise
        self._tell_of_early_end(standing)
        self._ledger.bring_up_to_date(self._aggregator.entries)
        if self._job.spec.statistics is not None:
            self._folder.save_statistics(self._job.spec.name, self._job.spec.statistics)
        self._folder.finish(standing.checkpoint)

    def _carry_out_all(
        self, standing: Standing, status: aggregator_pb2.RegisterJobResponse
    ) -> None:
        is_open, signed = status.HasField("open_manifest"), status.open_manifest
        opened = self._aggregator.opened(signed) if is_open else None
        while (step := _step_of(opened) or standing.schedule.next()) is not None:
            begun = time.monotonic()
            try:
                ended = self._carry_out(step, opened, standing.base, status.floor)
            except WrongState as error:
                self._note_refusal(standing, error)
                continue
            opened = None
            self._note(standing, step, ended, time.monotonic() - begun)
            self._check_stop()
            if standing.line is not None and not standing.schedule.awaits_evaluation:
                self._finish_round(standing)

    def _note_refusal(self, standing: Standing, error: WrongState) -> None:
        """A job whose budget is spent ends as one that has all its rounds. Raises any other refusal."""
        budget = PrivacyBudget.of(self._job.spec.aggregation)
        if error.reason != pb.REASON_BUDGET_SPENT or budget is None:
            raise error
        log.info("the budget is spent", reason=str(error))
        standing.schedule.ends_early = True
        released = standing.schedule.released
        self._aggregator.register(self._job.spec_bytes, ended=True)
        self._tell(events.BudgetSpent(released, self._job.spec.rounds, budget))

    def _part(self) -> None:
        """Fetch the ledger's last entries, if the aggregator still answers.

        Raises Fenced where the folder may be another coordinator's by now.
        """
        try:
            self._aggregator.register(self._job.spec_bytes)
            self._ledger.bring_up_to_date(self._aggregator.entries)
        except Unavailable as error:
            log.warning("the ledger's last entries were not fetched", reason=str(error))

    def _carry_out(self, step: Step, opened: OpenedRound | None, base: Base, floor: int) -> Ended:
        if opened is not None:
            return self._rounds.see_to_end(opened, base)
        spec, seconds = self._job.spec, self._job.gather_seconds
        selection = self._rounds.selection
        needed = self._needed(floor) if step.trains else Needed(floor)

        def waiting(present: Sequence[str]) -> None:
            self._tell(
                events.OwnersAwaited(spec.owners, present, needed, bool(spec.groups), seconds)
            )

        selected = selection.next(step, needed.owners, waiting)
        self._check_stop()
        selection.check(selected, needed)
        for group in selected.passed_over:
            self._tell(events.GroupPassedOver(step.round, group, needed))
        return self._rounds.carry_out(step, selected, base)

    def _needed(self, floor: int) -> Needed:
        """What a training needs. Raises CairnError where it could never be had."""
        sizes = {len(group) for group in self._job.sampling.groups}
        try:
            return needed_in(self._job.spec.aggregation, sizes, floor)
        except ValueError as error:
            raise CairnError(f"the job {self._job.spec.name} cannot be run: {error}") from None

    def _take_up(
        self, status: aggregator_pb2.RegisterJobResponse, checkpoint: Checkpoint
    ) -> Standing:
        """Reconcile the folder with what the aggregator has released."""
        if checkpoint.released > status.released:
            raise CairnError(
                f"the aggregator knows {status.released} releases of {self._job.spec.name}, this run"
                f" has {checkpoint.released}: its state was lost or replaced. Go on under a new job"
                f" name, with model = {self._folder.model_path}"
            )
        self._folder.prune_history(checkpoint.round)
        self._rounds.selection.backoff = Backoff(checkpoint.failing)
        schema, payload = self._folder.model()
        base = Base(schema, payload, schema.digest(payload))
        self._folder.mend_best(checkpoint.best, base.digest)
        schedule = Schedule(
            self._job.spec.rounds, self._job.evaluates, status.last_round, status.released
        )
        standing = Standing(checkpoint, base, schedule)
        schedule.ends_early = self._ends_early(checkpoint)
        if status.HasField("last_statement"):
            statement = self._aggregator.statement(status.last_statement)
            # A crash may have come between the model and its statement: then both are written again.
            if statement.release_digest != base.digest or statement.round > checkpoint.round:
                self._keep(standing, self._rounds.collect(statement.manifest_digest, schema))
            if statement.round > checkpoint.round:
                cohort = self._ledger.cohort_of(statement.manifest_digest)
                self._rounds.selection.was_trained_by(cohort)
                standing.line = Line.of(statement, 0.0, self._job.sampling.number_of(cohort))
                schedule.resume_evaluation(statement.round)
                if not schedule.awaits_evaluation:
                    self._finish_round(standing)
        return standing

    def _note(self, standing: Standing, step: Step, ended: Ended, seconds: float) -> None:
        """Keep what a step brought."""
        for exclusion in ended.exclusions:
            self._tell(events.OwnerNotCounted(step.round, exclusion.owner, exclusion.reason))
        for owner, back_in in ended.resting.items():
            self._tell(events.OwnerRests(step.round, owner, back_in))
        if ended.release is None:
            self._tell(events.RoundAborted(step, ended.reason))
            if not step.trains and standing.line is not None:
                standing.line.evaluation = reason_word(ended.reason)
            self._check_stop()
            standing.schedule.was_aborted(step, ended.reason, ended.exclusions)
            return
        standing.schedule.was_released(step)
        if step.trains:
            self._keep(standing, ended.release)
            statement = ended.release.statement
            standing.line = Line.of(statement, seconds, ended.group, ended.left_out)
            if self._trains_with_metrics and not statement.metrics:
                self._tell(events.MetricsMissing(step.round))
            self._trains_with_metrics = bool(statement.metrics)  # so that it is said once in a row
        else:
            self._folder.save_evaluation(ended.release.signed)
            standing.measured = dict(ended.release.statement.metrics)
            if standing.line is not None:
                standing.line.add_evaluation(standing.measured, seconds)

    def _keep(self, standing: Standing, release: Release) -> None:
        schema = standing.base.schema
        if release.model is not None:
            self._folder.save_release(release.signed, release.model)
        payload = self._folder.values(schema)
        standing.base = Base(schema, payload, release.statement.release_digest)

    def _finish_round(self, standing: Standing) -> None:
        line = standing.line
        if line is None:
            return
        goes_on, measured = standing.schedule.next() is not None, standing.measured
        best = self._best.judge(standing.checkpoint.best, line.round, measured, goes_on=goes_on)
        line.best = best.round if best is not None and self._job.best is not None else None
        is_best = line.best == line.round
        standing.checkpoint = replace(
            standing.checkpoint,
            round=line.round,
            released=standing.schedule.released,
            failing=self._rounds.selection.backoff.failing,
            best=best,
        )
        values = {**line.__dict__, "seconds": round(line.seconds, 3)}
        self._folder.finish_round(standing.checkpoint, values)
        if is_best:
            self._folder.keep_best()
        standing.schedule.ends_early = self._ends_early(standing.checkpoint)
        self._tell(
            events.RoundFinished(
                release=standing.schedule.released,
                releases=self._job.spec.rounds,
                round=line.round,
                contributors=line.contributors,
                group=line.group,
                metrics=line.metrics,
                seconds=line.seconds,
                is_best=is_best,
                epsilon=line.epsilon,
                budget=PrivacyBudget.of(self._job.spec.aggregation),
            )
        )
        if standing.schedule.next() is not None:
            self._best.check(best, line.round, measured)
        standing.line = standing.measured = None

    def _ends_early(self, checkpoint: Checkpoint) -> bool:
        """Whether no round is to follow. A job that is completed stays so, whatever its file now says of patience."""
        return checkpoint.completed or self._best.has_waited(checkpoint.best)

    def _tell_of_early_end(self, standing: Standing) -> None:
        rule, best, rounds = self._job.best, standing.checkpoint.best, self._job.spec.rounds
        released = standing.schedule.released
        if rule is not None and best is not None and released < rounds:
            self._aggregator.register(self._job.spec_bytes, ended=True)
            self._tell(events.StoppedEarly(released, rounds, rule.min_delta, best))

    def _check_stop(self) -> None:
        if self._stopping.is_set():
            raise CairnError("stopped; the same command goes on from the checkpoint")


def _step_of(opened: OpenedRound | None) -> Step | None:
    return Step(opened.manifest.round, opened.manifest.phase) if opened is not None else None
