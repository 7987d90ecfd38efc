"""The aggregator's jobs and rounds: registers jobs, opens rounds and sees them to their end.

What may be opened is decided by `admission`, how a round goes by `session`, and `recorder` makes what is
promised to a peer durable first.
"""

import secrets
import threading
from collections.abc import Callable
from dataclasses import asdict

from aggregator_node.admission import (
    LEAST_JOB_BYTES,
    MAX_OPEN_ROUNDS,
    MAX_UNRELEASED_BYTES,
    AdmissionPolicy,
    Opening,
    check_opening,
)
from aggregator_node.events import JobRegistered, Observer
from aggregator_node.optimizers.step import step_of
from aggregator_node.rounds.epochs import Epochs
from aggregator_node.rounds.registry import RoundRegistry
from aggregator_node.rounds.session import RoundSession
from aggregator_node.rounds.upload import RoundContext
from aggregator_node.storage.rows import JobRow, Progress, RoundRow, spec_of
from aggregator_node.storage.store import Store
from cairn.errors import (
    CallerNotAllowed,
    Conflict,
    LimitExceeded,
    NotFound,
    Unavailable,
    WrongState,
)
from cairn.protocol.messages import JobSpec, Manifest, digest_of, manifest_from_bytes
from cairn.protocol.privacy import PrivacyBudget
from cairn.protocol.statistics import statistics_in_words
from cairn.runtime.clock import Clock
from cairn.runtime.failpoints import failpoint
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb


class JobRegistry:
    """Everything this aggregator has under way. Every public method may be called from any thread."""

    def __init__(
        self,
        policy: Callable[[], AdmissionPolicy],
        store: Store,
        rounds: RoundRegistry,
        clock: Clock,
        tell: Observer,
    ) -> None:
        """Take up the store.

        `policy` returns the rules with the roster as it stands at the moment.
        """
        self._policy = policy
        self._store = store
        self._epochs = Epochs(store)
        self._rounds = rounds
        self._clock = clock
        self._tell = tell
        self._lock = threading.RLock()
        self._awaited: dict[str, int] = {}  # job → how many releases, since this process began

    def register(
        self, coordinator: str, body: bytes, process: bytes, *, ended: bool = False
    ) -> aggregator_pb2.RegisterJobResponse:
        """Register a job, or tell the state of a known one, to the process that is in charge from now on.

        A job that has `ended` awaits no other release.
        """
        spec = spec_of(body)
        with self._lock:
            row = self._store.job(spec.name)
            if row is None:
                self._policy().check_job(spec)
                unreleased = self._store.unreleased_bytes(coordinator, LEAST_JOB_BYTES)
                if unreleased + max(len(body), LEAST_JOB_BYTES) > MAX_UNRELEASED_BYTES:
                    raise LimitExceeded(
                        "too many jobs of this coordinator have no release yet: finish one of them"
                        " first"
                    )
            elif row.coordinator != coordinator:
                raise CallerNotAllowed(f"{spec.name} is another coordinator's job")
            elif row.spec != body:
                raise Conflict(
                    f"another job was registered under the name {spec.name}: give the changed job"
                    " a new name"
                )
            with self._store.transaction():
                if row is None:
                    self._add(coordinator, spec, body)
                epoch = self._epochs.enter(spec.name, process)
                failpoint("aggregator.job.before_commit")
            self._tell(JobRegistered(spec.name, coordinator, epoch))
            self._awaited[spec.name] = 0 if ended else spec.rounds
            return self._state_of(spec, epoch)

    def open(self, coordinator: str, epoch: int, job: str, opening: Opening) -> pb.Signed:
        """Commit the round's cohort and sign its manifest; again for a repeated request."""
        row = self._row_of(coordinator, job)
        spec = spec_of(row.spec)
        with self._lock:
            self._epochs.check(job, epoch)
            policy = self._policy()
            self._rounds.record_left_over_ends(
                each for each in self._store.open_rounds() if each.job == job
            )
            known = self._store.find_round(job, opening.round, opening.phase)
            if known is not None:
                return _same_opening(known, opening)
            under_way = self._rounds.under_way(coordinator)
            if any(session.manifest.job == job for session in under_way):
                raise WrongState(f"a round of {job} is open")
            if len(under_way) >= MAX_OPEN_ROUNDS:
                raise Unavailable(
                    f"{MAX_OPEN_ROUNDS} rounds of this coordinator are open: another has to wait until"
                    " one has ended",
                    pb.REASON_TOO_MUCH,
                )
            progress = self._store.progress(job)
            check_opening(policy, spec, progress, opening)
            # Else all owners would train for a round that can only be aborted.
            self._store.check_room(spec.schema.total_bytes + _state_bytes(spec))
            context = self._context_of(policy, spec, digest_of(row.spec), progress, opening)
            return self._rounds.start(coordinator, context)

    def in_charge(self, coordinator: str, epoch: int, job: str) -> JobRow:
        """The row of a job, for the process that is in charge of it."""
        row = self._row_of(coordinator, job)
        self._epochs.check(job, epoch)
        return row

    def session(self, manifest_digest: bytes) -> RoundSession:
        """A round that is open or has just ended.

        Raises WrongState for one that ended longer ago, NotFound for one that never was.
        """
        session = self._rounds.find(manifest_digest)
        if session is None:
            self._store.round(manifest_digest)
            raise WrongState("the round has ended", pb.REASON_ROUND_ENDED)
        return session

    def row(self, coordinator: str, epoch: int, manifest_digest: bytes) -> RoundRow:
        """What is recorded of a round, for the coordinator that is in charge of its job."""
        row = self._store.round(manifest_digest)
        self._row_of(coordinator, row.job)
        self._epochs.check(row.job, epoch)
        return row

    def abort(self, coordinator: str, epoch: int, manifest_digest: bytes) -> RoundSession | None:
        """End a round without a release. Returns it where its end may not be recorded yet.

        Raises WrongState where it is sealed or was released.
        """
        with self._lock:  # nobody takes over meanwhile
            row = self.row(coordinator, epoch, manifest_digest)
            session = self._rounds.find(manifest_digest)
            if session is not None:
                session.abort(pb.REASON_ABORTED)
            elif row.state != aggregator_pb2.ROUND_STATE_ABORTED:
                raise WrongState("the round was released")
            return session

    def are_released(self) -> bool:
        """Whether coordinators have come with jobs, and all of these have their last release or have ended."""
        with self._lock:
            jobs = dict(self._awaited)
        return bool(jobs) and all(self._store.progress(j).released >= n for j, n in jobs.items())

    def _context_of(
        self,
        policy: AdmissionPolicy,
        spec: JobSpec,
        job_digest: bytes,
        progress: Progress,
        opening: Opening,
    ) -> RoundContext:
        """The manifest of a round that may be opened, and what goes with it."""
        number, head = self._store.ledger_head()
        draws = opening.phase == pb.PHASE_TRAIN and spec.aggregation.draws
        draw_seed = secrets.token_bytes(32) if draws else b""
        manifest = Manifest(
            federation=spec.federation,
            job=spec.name,
            job_digest=job_digest,
            round=opening.round,
            phase=opening.phase,
            cohort=opening.cohort,
            base_digest=opening.base_digest,
            previous_release_digest=progress.release_digest,
            weighting=spec.weighting,
            floor=policy.floor_of(spec),
            deadline_unix_ms=self._clock.unix_ms() + 1000 * spec.round_deadline_seconds,
            lease_seconds=policy.lease_seconds,
            nonce=secrets.token_bytes(32),
            ledger_head=head,
            ledger_number=number,
            encoding=self._encoding_of(spec, opening),
            largest_share=policy.largest_share,
            aggregation=spec.aggregation,
            draw_commitment=digest_of(draw_seed) if draws else b"",
        )
        return RoundContext(manifest, spec, policy.bounds, draw_seed)

    def _encoding_of(self, spec: JobSpec, opening: Opening) -> "pb.Encoding":
        """Updates can be deltas only from a model that is here: the last release, or the first where that is needed."""
        if opening.phase != pb.PHASE_TRAIN:
            return pb.ENCODING_WHOLE
        last = self._store.last_release(spec.name)
        is_here = last is not None and self._store.release_path(last.manifest_digest).exists()
        return spec.encoding if is_here or spec.aggregation.needs_base else pb.ENCODING_WHOLE

    def _add(self, coordinator: str, spec: JobSpec, body: bytes) -> None:
        self._store.add_job(JobRow(spec.name, coordinator, body))
        digest = digest_of(body).hex()
        facts: dict[str, object] = {
            "job": spec.name,
            "job_digest": digest,
            "coordinator": coordinator,
        }
        # For everybody to check the cohorts, the file of statistics, and what is told of an owner, against.
        if spec.groups:
            facts["groups"] = spec.groups
        if spec.statistics is not None:
            facts["statistics"] = statistics_in_words(spec.statistics)
        if (budget := PrivacyBudget.of(spec.aggregation)) is not None:
            facts["privacy"] = asdict(budget)
        self._store.append("job", facts)

    def _state_of(self, spec: JobSpec, epoch: int) -> aggregator_pb2.RegisterJobResponse:
        progress, last = self._store.progress(spec.name), self._store.last_release(spec.name)
        state = aggregator_pb2.RegisterJobResponse(
            epoch=epoch,
            floor=self._policy().floor_of(spec),
            last_round=progress.opened,
            released=progress.released,
        )
        if last is not None and last.statement is not None:
            state.last_statement.ParseFromString(last.statement)
        under_way = {session.digest for session in self._rounds.under_way()}
        for row in self._store.open_rounds():
            # A round whose end could not be recorded is open in the store only.
            if row.job == spec.name and row.manifest_digest in under_way:
                state.open_manifest.ParseFromString(row.manifest)
        return state

    def _row_of(self, coordinator: str, job: str) -> JobRow:
        row = self._store.job(job)
        if row is None:
            raise NotFound(f"there is no job {job} here: register it first")
        if row.coordinator != coordinator:
            raise CallerNotAllowed(f"{job} is another coordinator's job")
        return row


def _state_bytes(spec: JobSpec) -> int:
    """The size of what the job's optimizer keeps beside a release."""
    step = step_of(spec.schema, spec.aggregation)
    return step.state_schema.total_bytes if step is not None and step.state_schema else 0


def _same_opening(known: RoundRow, opening: Opening) -> pb.Signed:
    signed = pb.Signed.FromString(known.manifest)
    manifest = manifest_from_bytes(signed.body)
    if (manifest.cohort, manifest.base_digest) != (opening.cohort, opening.base_digest):
        raise WrongState(
            f"round {opening.round} was opened with another cohort or base; neither can change",
            pb.REASON_CONFLICT,
        )
    return signed
