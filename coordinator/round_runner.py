"""Takes one round from its opening to its collected release, between owners and aggregator."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from cairn.errors import CairnError, InvalidMessage, WrongState
from cairn.model.safetensors_writer import ModelWriter
from cairn.model.schema import Schema
from cairn.protocol.aggregation import aggregation_from_pb
from cairn.protocol.messages import digest_of
from cairn.runtime.failpoints import failpoint
from cairn.v1 import aggregator_pb2, coordinator_pb2
from cairn.v1 import round_pb2 as pb
from coordinator.aggregator_client import AggregatorClient, OpenedRound
from coordinator.cohort_selection import CohortSelection, SelectedCohort
from coordinator.invitation_service import InvitationService
from coordinator.job import Base, Job
from coordinator.owner_sessions import OwnerSessions
from coordinator.release_download import Release
from coordinator.schedule import Step

log = structlog.get_logger()

# What a release statement says again of its manifest.
_REPEATED = ("federation", "job", "round", "phase", "base_digest", "weighting", "encoding")


@dataclass(frozen=True)
class Ended:
    """How a round ended: with a release, or without one for a reason.

    `left_out` attended and were not invited, and those of `resting` will not be before the round named. `group`
    is the number of the group that took part, where the job has several.
    """

    release: Release | None
    reason: "pb.Reason"
    exclusions: tuple[pb.Exclusion, ...]
    group: int | None = None
    left_out: tuple[str, ...] = ()
    resting: Mapping[str, int] = field(default_factory=dict)


class RoundRunner:
    """Carries out the rounds of one job, one after the other."""

    def __init__(
        self,
        job: Job,
        aggregator: AggregatorClient,
        sessions: OwnerSessions,
        service: InvitationService,
        new_model: Callable[[Schema], ModelWriter],
        stopping: threading.Event,
    ) -> None:
        self._job = job
        self._aggregator = aggregator
        self._sessions = sessions
        self._service = service
        self._new_model = new_model
        self._stopping = stopping
        self._lock = threading.Lock()
        self._open: OpenedRound | None = None
        self.selection = CohortSelection(job.sampling, job.gather_seconds, sessions)

    def carry_out(self, step: Step, selected: SelectedCohort, base: Base) -> Ended:
        """Open the round and see it to its end."""
        failpoint("coordinator.open.before_call")
        try:
            opened = self._open_round(step, selected.cohort, base)
        except WrongState as error:
            if step.trains:
                raise
            log.warning("evaluation left out", round=step.round, reason=str(error))
            return Ended(None, error.reason, ())
        return replace(self.see_to_end(opened, base), left_out=selected.left_out)

    def _open_round(self, step: Step, cohort: list[str], base: Base) -> OpenedRound:
        """Open it, and bring the model that it starts from where the aggregator needs it and has lost it."""
        name = self._job.spec.name
        try:
            return self._aggregator.open(name, step, cohort, base.digest)
        except WrongState as error:
            if error.reason != pb.REASON_MODEL_MISSING:
                raise
        self.bring(base)
        return self._aggregator.open(name, step, cohort, base.digest)

    def bring(self, base: Base) -> None:
        """Bring the aggregator the model that the next round starts from."""
        self._aggregator.submit_model(self._job.spec.name, base.digest, base.payload)

    def see_to_end(self, opened: OpenedRound, base: Base) -> Ended:
        """Invite the cohort of an open round, wait for its end and tell everybody of it."""
        if opened.manifest.base_digest != base.digest:
            raise InvalidMessage(
                "the open round starts from another model than the run's folder has"
            )
        failpoint("coordinator.open.received")
        with self._lock:
            self._open = opened
        if self._stopping.is_set():  # told to stop while the round was being opened
            self.abort_open_round()
        self._service.offer(base.digest, base.payload)
        invitation = coordinator_pb2.Invitation(
            manifest=opened.signed, job_spec=self._job.spec_bytes
        )
        cohort = opened.manifest.cohort
        self._sessions.invite(cohort, coordinator_pb2.AttendResponse(invitation=invitation))
        failpoint("coordinator.invite.sent")
        ending = self._aggregator.watch(opened, self._job.spec.round_deadline_seconds)
        excluded = tuple(ending.exclusions)
        release = None
        if ending.state == aggregator_pb2.ROUND_STATE_RELEASED:
            release = self._collect_of(opened, base.schema)
            failpoint("coordinator.release.received")
        with self._lock:
            self._open = None
        self._announce(opened, release, ending.reason)
        unheard = [e.owner for e in excluded if e.reason == pb.REASON_LEASE_EXPIRED]
        doubted = self._sessions.disconnect(unheard)
        missed = {exclusion.owner for exclusion in excluded}
        resting = self.selection.note(
            opened.manifest, missed, doubted, released=release is not None
        )
        group = self._job.sampling.number_of(cohort)
        return Ended(release, ending.reason, excluded, group, resting=resting)

    def collect(self, manifest_digest: bytes, schema: Schema) -> Release:
        return self._aggregator.collect(manifest_digest, schema, self._new_model)

    def _collect_of(self, opened: OpenedRound, schema: Schema) -> Release:
        release = self.collect(opened.digest, schema)
        try:
            _check(release, opened)
        except BaseException:
            if release.model is not None:
                release.model.discard()
            raise
        return release

    def abort_open_round(self) -> None:
        """Have the aggregator end the round that is under way in another thread, if one is."""
        with self._lock:
            opened = self._open
        if opened is not None:
            try:
                self._aggregator.abort(opened)
            except CairnError as error:
                log.warning("the open round could not be ended", reason=str(error))

    def _announce(self, opened: OpenedRound, release: Release | None, reason: "pb.Reason") -> None:
        outcome = coordinator_pb2.Outcome(
            manifest_digest=opened.digest,
            statement=release.signed if release else None,
            reason=reason,
        )
        event = coordinator_pb2.AttendResponse(outcome=outcome)
        self._sessions.tell(opened.manifest.cohort, event)


def _check(release: Release, opened: OpenedRound) -> None:
    """Raise InvalidMessage where a statement does not keep what the manifest said."""
    statement, manifest = release.statement, opened.manifest
    repeats = all(getattr(statement, field) == getattr(manifest, field) for field in _REPEATED)
    if not repeats or aggregation_from_pb(statement.aggregation) != manifest.aggregation:
        raise InvalidMessage("the release statement is that of another round")
    excluded = {exclusion.owner for exclusion in statement.exclusions}
    counted = len(manifest.cohort) - len(excluded)
    if len(excluded) != len(statement.exclusions) or not excluded <= set(manifest.cohort):
        raise InvalidMessage(
            "the release statement excludes an owner twice, or one of another round"
        )
    if statement.floor != manifest.floor or statement.contributors != counted:
        raise InvalidMessage("the release statement counts other owners than the round had")
    drawn = digest_of(statement.draw_seed) if statement.draw_seed else b""
    if drawn != manifest.draw_commitment:
        raise InvalidMessage("the release statement has another draw than its manifest commits to")
    if statement.ledger_number <= manifest.ledger_number:
        raise InvalidMessage("the release statement is recorded before its round was opened")
