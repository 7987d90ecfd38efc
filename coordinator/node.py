"""A coordinator, assembled from its parts for one job."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cairn.diagnostics.preflight import preflight
from cairn.errors import Fenced, UsageError
from cairn.identity.credentials import Identity, load_identity
from cairn.identity.names import NodeName, Role
from cairn.identity.signing_keys import parse_signing_key_text
from cairn.identity.trust import load_pinned
from cairn.model.schema import Schema
from cairn.protocol.statistics import schema_of
from cairn.protocol.summary import report_of
from cairn.runtime.node_thread import NodeThread
from cairn.runtime.process import MOST_CONNECTIONS
from cairn.runtime.timeouts import SHORT_WAIT_SECONDS, SHUTDOWN_SECONDS
from cairn.transport.channel import dial
from cairn.transport.server import Server
from cairn.v1 import coordinator_pb2
from cairn.v1.coordinator_pb2_grpc import add_InvitationServiceServicer_to_server
from coordinator.aggregator_client import AggregatorClient
from coordinator.best_release import check_same_metric
from coordinator.diagnostics import node_of
from coordinator.events import BestModelKept, JobFinished, Observer, StatisticsReleased, ignore
from coordinator.initial_model import first_model
from coordinator.invitation_service import InvitationService
from coordinator.job import Job, planned
from coordinator.job_runner import JobRunner
from coordinator.owner_sessions import OwnerSessions
from coordinator.round_runner import RoundRunner
from coordinator.run_directory import Checkpoint, RunFolder
from coordinator.settings import CoordinatorSettings, JobSettings

_OTHERS = 4  # who ask for its health, such as its own container


class Coordinator:
    """Runs one job, from the settings of both. Several can work in one process.

    `out` is the run's folder. Whatever happens is told to `tell`, in the thread of the job. With `dismiss`, a job
    that has ended before is not opened again, but its owners are told so. Its port takes so many `connections`.
    """

    def __init__(
        self,
        job: JobSettings,
        settings: CoordinatorSettings,
        out: Path,
        *,
        tell: Observer = ignore,
        dismiss: bool = False,
        connections: int = MOST_CONNECTIONS,
    ) -> None:
        self._job = job
        self._settings = settings
        self._out = out
        self._tell = tell
        self._dismiss = dismiss
        self._connections = connections
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._serving: _Serving | None = None
        self._thread: NodeThread | None = None

    def start(self) -> None:
        """Take up the run's folder, open the port, and run the job from now on.

        Raises UsageError for a mistake in a file.
        """
        settings = self._settings
        preflight(node_of(settings, self._out))
        node = NodeName(settings.federation, Role.COORDINATOR, settings.name)
        identity = load_identity(settings.identity, node, datetime.now(UTC))
        with ExitStack() as opened:
            folder = RunFolder(self._out)
            opened.callback(folder.close)
            job, checkpoint = self._taken_up(folder)
            serving = None
            if self._dismiss or not checkpoint.completed:
                serving = self._serving = self._assembled(job, identity, folder)
                opened.callback(serving.hang_up)
                serving.listener.start(settings.listen)
            kept = opened.pop_all()
        self._thread = NodeThread(
            lambda: self._run(folder, checkpoint, serving, kept), "coordinator"
        )

    def wait(self) -> int:
        """Wait until the job has ended; returns 0. Raises CairnError where it could not be ended."""
        return self._thread.wait() if self._thread is not None else 0

    def stop(self) -> None:
        """Have the open round aborted and end; the same run can go on later. From any thread."""
        self._stopping.set()
        serving = self._serving
        if serving is None:
            return
        serving.sessions.wake()
        serving.rounds.abort_open_round()
        if not self._ended.wait(SHUTDOWN_SECONDS):
            serving.hang_up()  # whatever still waits for the aggregator ends now

    def _taken_up(self, folder: RunFolder) -> tuple[Job, Checkpoint]:
        """The job, and how far its folder is, which is begun where it is new."""
        job, out, checkpoint = self._job, self._out, folder.checkpoint()
        if checkpoint is not None:
            schema, payload = folder.model()
        else:
            schema, payload = _first_model(job, out)
        plan = planned(job, self._settings.federation, schema)
        if checkpoint is None:
            checkpoint = Checkpoint(job=job.name, job_digest=plan.digest)
            folder.begin(checkpoint, schema, payload)
        elif checkpoint.job_digest != plan.digest:
            raise UsageError(
                f"{out} holds a run of the job {checkpoint.job} with other settings: choose another --out,"
                " or give the changed job a new name and a folder of its own"
            )
        else:
            check_same_metric(job.best, checkpoint.best, out)
            folder.mend_first_model(checkpoint)
        return plan, checkpoint

    def _assembled(self, job: Job, identity: Identity, folder: RunFolder) -> "_Serving":
        settings, stopping = self._settings, self._stopping
        pin = load_pinned(
            settings.identity.aggregator, Role.AGGREGATOR, settings.federation, datetime.now(UTC)
        )
        channel = dial(settings.aggregator, identity, pin)
        key = parse_signing_key_text(settings.aggregator_signing_key)
        patience = settings.patience_seconds
        aggregator = AggregatorClient(channel, settings.aggregator, key, patience, stopping)
        sessions = OwnerSessions()
        service = InvitationService(settings.federation, job.spec.name, job.spec.owners, sessions)
        rounds = RoundRunner(job, aggregator, sessions, service, folder.new_model, stopping)
        owners = len(job.spec.owners)
        listener = Server(
            identity,
            long_callers=owners,
            callers=owners + _OTHERS,
            connections=self._connections,
            serves=Role.OWNER,
        )
        listener.add(add_InvitationServiceServicer_to_server, service)
        runner = JobRunner(job, folder, aggregator, rounds, self._tell, stopping)
        return _Serving(job, channel.close, sessions, rounds, listener, runner)

    def _run(
        self, folder: RunFolder, checkpoint: Checkpoint, serving: "_Serving | None", kept: ExitStack
    ) -> int:
        with kept:
            if serving is not None:
                try:
                    self._serve(serving, checkpoint)
                except Fenced as error:
                    sentence = f"{error}. This one ends, and leaves {folder.path} as it is"
                    raise Fenced(sentence) from None
            at_end = folder.checkpoint()
            if at_end is not None and at_end.best is not None:
                self._tell(BestModelKept(folder.best_path, at_end.best))
            schema, payload = folder.model()
            if self._job.statistics is not None:
                report = report_of(self._job.name, self._job.statistics.counted, payload)
                self._tell(StatisticsReleased(folder.statistics_path, report))
            else:
                self._tell(JobFinished(folder.model_path, schema.digest(payload)))
        return 0

    def _serve(self, serving: "_Serving", checkpoint: Checkpoint) -> None:
        job, sessions = serving.job, serving.sessions
        finished, goes_on = coordinator_pb2.Finished(job=job.spec.name), False
        try:
            if checkpoint.completed:
                sessions.wait_for_all(job.spec.owners, job.gather_seconds)
            serving.runner.run(checkpoint)
            finished.completed = True
        except Fenced:
            goes_on = True
            raise
        finally:
            self._ended.set()
            # A job that was only stopped, or is another's now, goes on: its owners stay.
            goes_on |= self._stopping.is_set()
            last = None if goes_on else coordinator_pb2.AttendResponse(finished=finished)
            sessions.dismiss(last, SHORT_WAIT_SECONDS)
            serving.listener.stop(0.0)


def _first_model(job: JobSettings, workspace: Path) -> tuple[Schema, memoryview]:
    """What the job starts from: of statistics, zeros, which no owner fetches."""
    if job.statistics is not None:
        schema = schema_of(job.statistics.counted)
        return schema, memoryview(bytes(schema.total_bytes))
    if job.model is None:
        raise AssertionError("a job without a model counts data")
    gradients = job.aggregation.are_gradients
    return first_model(job.model, job.seed, workspace, gradients=gradients)


@dataclass(frozen=True)
class _Serving:
    """What serves a job."""

    job: Job
    hang_up: Callable[[], None]  # on the aggregator
    sessions: OwnerSessions
    rounds: RoundRunner
    listener: Server
    runner: JobRunner
