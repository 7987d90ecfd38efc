"""Assembles a coordinator and runs one job with it."""

import threading
from datetime import UTC, datetime
from pathlib import Path

from cairn.encoding import WORDS
from cairn.errors import CairnError, Fenced, UsageError
from cairn.failpoint import switch_on_failpoints
from cairn.identity import (
    Identity,
    NodeName,
    Role,
    load_identity,
    load_pinned_aggregator,
    parse_signing_key_text,
)
from cairn.messages import JobSpec, job_spec_from_bytes, job_spec_to_bytes
from cairn.preflight import preflight
from cairn.process import allow_many_connections, on_stop_signal, start_logging
from cairn.rpc import Listener, dial
from cairn.tensors import Schema
from cairn.timeouts import MOMENT_SECONDS, PARTING_SECONDS
from cairn.v1 import coordinator_pb2
from cairn.v1 import round_pb2 as pb
from cairn.v1.coordinator_pb2_grpc import add_InvitationServiceServicer_to_server
from coordinator.aggregator_client import AggregatorClient
from coordinator.attendance import Attendance
from coordinator.console import Console
from coordinator.doctor import node_of
from coordinator.driver import Driver
from coordinator.first_model import first_model
from coordinator.invitation_service import InvitationService
from coordinator.record_client import RecordClient
from coordinator.rounds import Job, Rounds
from coordinator.run_folder import Checkpoint, RunFolder
from coordinator.sampling import Sampling, groups_of
from coordinator.settings import CoordinatorSettings, JobSettings

_OTHERS = 4  # who ask for its health, such as its own container
_WEIGHTING = {"equal": pb.WEIGHTING_EQUAL, "examples": pb.WEIGHTING_EXAMPLES}


def run(job: JobSettings, settings: CoordinatorSettings, out: Path, *, dismiss: bool) -> int:
    """Run the job to its end; returns the exit code 0.

    With `dismiss`, a job that has ended before is not opened again, but its owners are told so.

    Raises UsageError for a mistake in a file, CairnError where the job cannot be ended.
    """
    start_logging(federation=settings.federation, node=settings.name, job=job.name)
    switch_on_failpoints(settings.federation)
    preflight(node_of(settings, out))
    now = datetime.now(UTC)
    node = NodeName(settings.federation, Role.COORDINATOR, settings.name)
    identity = load_identity(settings.identity, node, now)
    folder = RunFolder(out)
    checkpoint = folder.checkpoint()
    schema, payload = folder.model() if checkpoint else first_model(job.model, job.seed, out)
    plan = _plan(job, settings.federation, schema)
    if checkpoint is None:
        checkpoint = Checkpoint(job=job.name, job_digest=plan.digest)
        folder.begin(checkpoint, schema, payload)
    elif checkpoint.job_digest != plan.digest:
        raise UsageError(
            f"{out} holds a run of the job {checkpoint.job} with other settings: choose another --out,"
            " or give the changed job a new name and a folder of its own"
        )
    else:
        folder.mend_first_model(checkpoint)
    console = Console(plan.spec, f"the aggregator at {settings.aggregator}")
    if dismiss or not checkpoint.completed:
        _serve(plan, settings, identity, folder, checkpoint, console)
    schema, payload = folder.model()
    console.finished(folder.model_path, schema.digest(payload).hex())
    return 0


def _serve(
    job: Job,
    settings: CoordinatorSettings,
    identity: Identity,
    folder: RunFolder,
    checkpoint: Checkpoint,
    console: Console,
) -> None:
    pin = load_pinned_aggregator(
        settings.identity.aggregator, settings.federation, datetime.now(UTC)
    )
    stopping, ended = threading.Event(), threading.Event()
    channel = dial(settings.aggregator, identity, pin)
    key = parse_signing_key_text(settings.aggregator_signing_key)
    patience = settings.patience_seconds
    aggregator = AggregatorClient(channel, settings.aggregator, key, patience, stopping)
    records = RecordClient(channel, settings.aggregator, key, patience, stopping)
    attendance = Attendance()
    service = InvitationService(settings.federation, job.spec.name, job.spec.owners, attendance)
    rounds = Rounds(job, aggregator, attendance, service, folder.new_model, stopping)
    driver = Driver(job, folder, aggregator, records, rounds, console, stopping)
    owners = len(job.spec.owners)
    listener = Listener(
        identity,
        long_callers=owners,
        callers=owners + _OTHERS,
        connections=allow_many_connections(ports=1),
        serves=Role.OWNER,
    )
    listener.add(add_InvitationServiceServicer_to_server, service)
    listener.start(settings.listen)

    def stop() -> None:
        stopping.set()
        attendance.wake()
        rounds.abort_open_round()
        if not ended.wait(PARTING_SECONDS):
            channel.close()  # whatever still waits for the aggregator ends now

    on_stop_signal(stop)
    finished, goes_on = coordinator_pb2.Finished(job=job.spec.name), False
    try:
        if checkpoint.completed:
            attendance.gather_all(job.spec.owners, job.gather_seconds)
        driver.run(checkpoint)
        finished.completed = True
    except Fenced as error:
        goes_on = True
        raise Fenced(f"{error}. This one ends, and leaves {folder.path} as it is") from None
    finally:
        ended.set()
        # A job that was only stopped, or is another's now, goes on: its owners stay.
        goes_on |= stopping.is_set()
        last = None if goes_on else coordinator_pb2.AttendResponse(finished=finished)
        attendance.dismiss(last, MOMENT_SECONDS)
        listener.stop(0.0)


def _plan(job: JobSettings, federation: str, schema: Schema) -> Job:
    groups = groups_of(job.owners, job.groups, job.seed, job.name)
    spec = JobSpec(
        federation=federation,
        name=job.name,
        task=job.task,
        settings=job.settings,
        owners=tuple(sorted(job.owners)),
        floor=job.floor,
        rounds=job.rounds,
        weighting=_WEIGHTING[job.weighting],
        schema=schema,
        round_deadline_seconds=job.round_deadline_seconds,
        min_examples=job.examples[0],
        max_examples=job.examples[1],
        encoding=WORDS[job.updates],
        groups=groups if job.groups > 1 else (),
    )
    body = job_spec_to_bytes(spec)
    try:
        job_spec_from_bytes(body)  # what the aggregator will check, said before anything is sent
    except CairnError as error:
        raise UsageError(f"the job {job.name} cannot be run: {error}") from None
    sampling = Sampling(groups, job.seed, job.name)
    return Job(spec, body, sampling, job.evaluate, job.gather_seconds)
