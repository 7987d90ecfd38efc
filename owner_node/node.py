"""Assembles an owner node and runs it until it is told to stop. It listens on nothing."""

import queue
import threading
from datetime import UTC, datetime

import grpc
import structlog

from cairn.errors import CairnError, NotFound, Unavailable
from cairn.identity import (
    NodeName,
    Role,
    load_identity,
    load_pinned_aggregator,
    parse_signing_key_text,
)
from cairn.messages import reason_word
from cairn.patience import patiently
from cairn.process import on_stop_signal, start_logging
from cairn.rpc import CALL_SECONDS, dial, is_serving
from cairn.v1 import coordinator_pb2
from owner_node.aggregator_client import AggregatorClient
from owner_node.coordinator_client import CoordinatorClient
from owner_node.policy import Policy
from owner_node.rounds import Rounds
from owner_node.settings import OwnerSettings
from owner_node.training_process import TaskSource, TrainingProcess

log = structlog.get_logger()

_UNLISTED_PAUSE_SECONDS = 10.0
_PAUSE_SECONDS = 0.2  # between a stream that broke off and the next


def run(settings: OwnerSettings, *, once: bool) -> int:
    """Attend until SIGTERM or SIGINT, or with `once` until a job has ended.

    Raises UsageError for a mistake in the files, CairnError where the coordinator cannot be reached
    or refuses this owner.
    """
    start_logging(federation=settings.federation, node=settings.name)
    now = datetime.now(UTC)
    node = NodeName(settings.federation, Role.OWNER, settings.name)
    identity = load_identity(settings.identity, node, now)
    pin = load_pinned_aggregator(settings.identity.aggregator, settings.federation, now)
    key = parse_signing_key_text(settings.aggregator_signing_key)
    if not settings.tasks:
        log.warning("no task is configured: every invitation will be declined")

    stopping = threading.Event()
    tasks = {
        name: TrainingProcess(settings.name, TaskSource(name, task.file, task.data))
        for name, task in settings.tasks.items()
    }
    channel = dial(settings.coordinator, identity, identity.authority)
    coordinator = CoordinatorClient(channel)
    aggregator = AggregatorClient(dial(settings.aggregator, identity, pin), key, settings.name)
    ranges = {name: task.settings for name, task in settings.tasks.items()}
    policy = Policy(settings.federation, settings.name, settings.floor, ranges)
    rounds = Rounds(policy, coordinator, aggregator, tasks, stopping)
    attending = _Attending(settings, channel, coordinator, aggregator, rounds, stopping)

    def stop() -> None:
        stopping.set()
        rounds.leave()
        coordinator.close()

    on_stop_signal(stop)
    try:
        for process in tasks.values():
            process.start()
        log.info("owner is ready", tasks=sorted(tasks), fingerprint=identity.fingerprint)
        attending.run(once=once)
    finally:
        for process in tasks.values():
            process.close()
    return 0


class _Attending:
    """Reads the coordinator's stream, and has one worker that takes part in rounds."""

    def __init__(
        self,
        settings: OwnerSettings,
        channel: grpc.Channel,
        coordinator: CoordinatorClient,
        aggregator: AggregatorClient,
        rounds: Rounds,
        stopping: threading.Event,
    ) -> None:
        self._settings = settings
        self._channel = channel
        self._coordinator = coordinator
        self._aggregator = aggregator
        self._rounds = rounds
        self._stopping = stopping
        self._invitations: queue.SimpleQueue[coordinator_pb2.Invitation] = queue.SimpleQueue()

    def run(self, *, once: bool) -> None:
        threading.Thread(target=self._take_part, name="rounds", daemon=True).start()
        while not self._stopping.is_set():
            try:
                patiently(
                    self._check_serving,
                    f"the coordinator at {self._settings.coordinator}",
                    self._settings.patience_seconds,
                    self._stopping,
                )
                log.info("attending", coordinator=self._settings.coordinator)
                if self._attend() and once:
                    return
            except Unavailable:
                if not self._stopping.is_set():
                    raise
            except NotFound as error:  # its present job is not for us; a later one may be
                log.warning("the coordinator has no job for this owner", reason=str(error))
                self._stopping.wait(_UNLISTED_PAUSE_SECONDS)
            self._stopping.wait(_PAUSE_SECONDS)

    def _check_serving(self) -> None:
        if not is_serving(self._channel, CALL_SECONDS):
            raise Unavailable("it is stopping")

    def _attend(self) -> bool:
        """Follow the stream to its end; returns whether a job has ended with it."""
        ended = False
        try:
            for event in self._coordinator.attend(self._settings.federation):
                ended = self._handle(event) or ended
        except Unavailable as error:
            log.warning("the coordinator's stream broke off", trouble=str(error))
        return ended

    def _handle(self, event: coordinator_pb2.AttendResponse) -> bool:
        """Do what the event asks; returns whether it ends the job."""
        match event.WhichOneof("event"):
            case "invitation":
                self._invitations.put(event.invitation)
            case "outcome":
                self._note(event.outcome)
            case "finished":
                ended = event.finished
                log.info("the job has ended", job=ended.job, completed=ended.completed)
                return True
            case _:
                log.warning("the coordinator sent an event this version does not know")
        return False

    def _take_part(self) -> None:
        while True:
            self._rounds.take_part(self._invitations.get())

    def _note(self, outcome: coordinator_pb2.Outcome) -> None:
        """A round has ended: stop working on it, and say whether this owner was counted."""
        self._rounds.drop(outcome.manifest_digest)
        if not outcome.HasField("statement"):
            log.warning("round aborted", reason=reason_word(outcome.reason))
            return
        try:
            statement = self._aggregator.statement(outcome.statement)
        except CairnError as error:
            log.error(
                "the coordinator sent a statement that is not the aggregator's", why=str(error)
            )
            return
        excluded = {e.owner: reason_word(e.reason) for e in statement.exclusions}
        log.info(
            "released",
            job=statement.job,
            round=statement.round,
            contributors=statement.contributors,
            counted=excluded.get(self._settings.name, "yes"),
        )
