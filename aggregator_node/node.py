"""An aggregator, assembled from its parts."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import structlog

from aggregator_node import event_log
from aggregator_node.aggregation.workspace import MemoryBudget
from aggregator_node.diagnostics import node_of
from aggregator_node.idle_shutdown import IdleShutdown
from aggregator_node.intake_service import IntakeService
from aggregator_node.record_service import RecordService
from aggregator_node.release_service import ReleaseService
from aggregator_node.roster import Roster
from aggregator_node.rounds.bases import Bases
from aggregator_node.rounds.disclosure import ReleaseOverlap
from aggregator_node.rounds.jobs import JobRegistry
from aggregator_node.rounds.model_submission import ModelSubmission
from aggregator_node.rounds.receipts import Receipts
from aggregator_node.rounds.recorder import RoundRecorder
from aggregator_node.rounds.registry import RoundRegistry
from aggregator_node.settings import AggregatorSettings
from aggregator_node.storage.refusals import RefusalLog
from aggregator_node.storage.rollback import RollbackDetector
from aggregator_node.storage.store import Store
from cairn.diagnostics.preflight import preflight
from cairn.identity.credentials import Identity, load_identity
from cairn.identity.names import NodeName, Role
from cairn.identity.signing_keys import load_signing_key
from cairn.runtime.clock import Clock
from cairn.runtime.node_thread import NodeThread
from cairn.runtime.process import MOST_CONNECTIONS
from cairn.runtime.timeouts import SHUTDOWN_SECONDS
from cairn.transport.parsing import JOB_MESSAGE_BYTES
from cairn.transport.server import Server
from cairn.v1.aggregator_pb2_grpc import (
    add_IntakeServiceServicer_to_server,
    add_RecordServiceServicer_to_server,
    add_ReleaseServiceServicer_to_server,
)

log = structlog.get_logger()

_COORDINATORS = 16
_OWNERS = 64  # room for a roster that grows
# What an owner that does not wait for its turn can have us hold, for each of its streams. It also limits how
# fast a long link is: to so much in the time of a round trip.
_WINDOW_BYTES = 2 << 20
_LOOK_EVERY_SECONDS = 0.5  # at its own file, and for one job whether it may stop


@dataclass(frozen=True)
class _Parts:
    """What an aggregator is made of."""

    identity: Identity
    store: Store
    roster: Roster
    rollback: RollbackDetector
    jobs: JobRegistry
    submission: ModelSubmission
    rounds: RoundRegistry
    receipts: Receipts
    idle_shutdown: IdleShutdown
    refusals: RefusalLog
    clock: Clock


class AggregatorNode:
    """A trusted aggregator, from its settings and a clock. Several can serve in one process.

    With `once` it ends when its coordinator has left. Each of its two ports takes so many `connections`.
    """

    def __init__(
        self,
        settings: AggregatorSettings,
        clock: Clock,
        *,
        once: bool = False,
        connections: int = MOST_CONNECTIONS,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._once = once
        self._connections = connections
        self._stopping = threading.Event()
        self._thread: NodeThread | None = None

    def start(self) -> None:
        """Open both ports, and serve from now on.

        Raises UsageError for an identity, an address or a state directory that cannot be used.
        """
        settings = self._settings
        preflight(node_of(settings))
        parts = _assemble(settings, self._clock, self._stopping)
        owners = max(_OWNERS, len(settings.owners))
        intake, release = _doors(parts, owners, self._connections)
        intake.start(settings.listen_owners)
        release.start(settings.listen_coordinators)
        log.info(
            "aggregator is ready",
            owners_at=settings.listen_owners,
            coordinators_at=settings.listen_coordinators,
            floor=settings.floor,
            fingerprint=parts.identity.fingerprint,
        )
        self._thread = NodeThread(lambda: self._serve(parts, (intake, release)), "aggregator")

    def wait(self) -> int:
        """Wait until it has ended; returns 1 where its ledger turned out to be rolled back, else 0."""
        return self._thread.wait() if self._thread is not None else 0

    def stop(self) -> None:
        """Have it abort the open rounds and end. From any thread; returns at once."""
        self._stopping.set()

    def _serve(self, parts: _Parts, listeners: Sequence[Server]) -> int:
        while not self._stopping.wait(_LOOK_EVERY_SECONDS):
            parts.roster.look()  # so that trouble with the file is logged though nobody calls
            parts.refusals.count()
            if self._once and parts.idle_shutdown.is_due(completed=parts.jobs.are_released()):
                break
        log.info("aggregator is stopping")
        parts.rounds.abort_all()
        for listener in listeners:
            listener.stop(SHUTDOWN_SECONDS)
        parts.refusals.count(at_end=True)
        parts.store.close()
        return 1 if parts.rollback.rolled_back else 0


def _assemble(settings: AggregatorSettings, clock: Clock, stopping: threading.Event) -> _Parts:
    node = NodeName(settings.federation, Role.AGGREGATOR, settings.name)
    identity = load_identity(settings.identity, node, datetime.now(UTC))
    signing_key = load_signing_key(settings.identity.signing_key)
    roster = Roster(settings.file, lambda path: AggregatorSettings.load(path).listed(), clock)
    store = Store(settings.state, clock)
    # Before the jobs, which write to the ledger: not to one that was rolled back.
    rollback = RollbackDetector(settings.federation, store, signing_key, stopping.set)
    rules = settings.policy()
    overlap = ReleaseOverlap(
        any_base=settings.compare_releases == "same_model", max_statistics=settings.max_statistics
    )
    bases = Bases(store)
    recorder = RoundRecorder(store, signing_key, clock, overlap, bases, event_log.write)
    memory = MemoryBudget(settings.memory_bytes, settings.updates_in_flight)
    rounds = RoundRegistry(recorder, memory, signing_key, clock, event_log.write)
    jobs = JobRegistry(
        lambda: replace(rules, owners=roster.owners()), store, rounds, clock, event_log.write
    )
    submission = ModelSubmission(jobs, bases, store)
    receipts, refusals = Receipts(rounds.find, store, signing_key), RefusalLog(store, clock)
    idle = IdleShutdown(settings.patience_seconds, clock)
    return _Parts(
        identity, store, roster, rollback, jobs, submission, rounds, receipts, idle, refusals, clock
    )


def _doors(parts: _Parts, owners: int, connections: int) -> tuple[Server, Server]:
    """The owners' door and the coordinators'; at either, both kinds of node may ask for its health."""
    door = partial(
        Server,
        parts.identity,
        callers=owners + _COORDINATORS,
        connections=connections,
        admits=parts.roster.check,
        refused=parts.refusals.refused,
        can_work=parts.store.can_write,
    )
    intake = door(long_callers=owners, window_bytes=_WINDOW_BYTES, serves=Role.OWNER)
    release = door(
        long_callers=_COORDINATORS, message_bytes=JOB_MESSAGE_BYTES, serves=Role.COORDINATOR
    )
    intake.add(
        add_IntakeServiceServicer_to_server,
        IntakeService(parts.jobs, parts.receipts, parts.roster, parts.rollback, parts.clock),
    )
    release.add(
        add_ReleaseServiceServicer_to_server,
        ReleaseService(
            parts.jobs,
            parts.submission,
            parts.rounds,
            parts.store,
            parts.idle_shutdown,
            parts.clock,
        ),
    )
    for server in (intake, release):
        record = RecordService(parts.store, parts.rollback)
        server.add(add_RecordServiceServicer_to_server, record)
    return intake, release
