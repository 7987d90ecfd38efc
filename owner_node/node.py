"""An owner's node, assembled from its parts. It listens on nothing."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from cairn.diagnostics.preflight import preflight
from cairn.identity.credentials import Identity, load_identity
from cairn.identity.names import NodeName, Role
from cairn.identity.reload import Reloading, reloading_pin
from cairn.identity.signing_keys import parse_signing_key_text
from cairn.identity.trust import PeerTrust, load_pinned
from cairn.protocol.words import CONTENTS, ENCODINGS, OPTIMIZERS, RULES
from cairn.runtime.clock import Clock
from cairn.runtime.node_thread import NodeThread
from cairn.runtime.timeouts import CALL_SECONDS, SHUTDOWN_SECONDS
from cairn.storage.database import StateDirectory
from cairn.storage.directory import OWNER_DATABASE
from cairn.transport.channel import dial
from cairn.transport.health_client import is_serving
from cairn.transport.pinning import CoordinatorTrust
from owner_node.aggregator_client import AggregatorClient
from owner_node.coordinator_client import CoordinatorClient
from owner_node.coordinator_session import CoordinatorSession
from owner_node.diagnostics import node_of, sandbox_of
from owner_node.download import Downloader
from owner_node.event_log import log_event
from owner_node.events import Observer
from owner_node.participation import Participation
from owner_node.policy import Policy
from owner_node.privacy_limit import privacy_limit_of
from owner_node.receipts import Receipts
from owner_node.record_privacy import PrivacyAccount
from owner_node.records.decisions import DecisionLog
from owner_node.records.ledger import OwnerLedger
from owner_node.records.ledger_head import LedgerHeadTracker
from owner_node.settings import OwnerSettings
from owner_node.settlement import Settlement
from owner_node.settlement_watch import SettlementWatch
from owner_node.task_rules import TaskRules
from owner_node.training.kept_tensors import KeptTensors
from owner_node.training.supervisor import TaskSource, TrainingSupervisor
from owner_node.updates.prepare import DisclosureRules
from owner_node.updates.spool import UpdateSpool
from owner_node.upload import Uploader

log = structlog.get_logger()


class OwnerNode:
    """A data owner's node, from its settings and a clock. Several can work in one process; it listens on nothing.

    With `once` it ends when a job has ended. What happens in its rounds is told to `tell`, from any thread.
    """

    def __init__(
        self,
        settings: OwnerSettings,
        clock: Clock,
        *,
        once: bool = False,
        tell: Observer = log_event,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._once = once
        self._tell = tell
        self._stopping = threading.Event()
        self._participation: Participation | None = None
        self._coordinator: CoordinatorClient | None = None
        self._thread: NodeThread | None = None

    def start(self) -> None:
        """Check what lies on this machine, and attend from now on. Raises UsageError for a mistake in the files."""
        settings = self._settings
        preflight(node_of(settings))
        now = datetime.now(UTC)
        node = NodeName(settings.federation, Role.OWNER, settings.name)
        identity = load_identity(settings.identity, node, now)
        pin = load_pinned(settings.identity.aggregator, Role.AGGREGATOR, settings.federation, now)
        key = parse_signing_key_text(settings.aggregator_signing_key)
        with ExitStack() as opened:
            state = StateDirectory(settings.state, OWNER_DATABASE)
            opened.callback(state.close)
            heads = LedgerHeadTracker(state, key, settings.federation)
            coordinator, coordinator_serves = _coordinator(settings, identity)
            channel = opened.enter_context(dial(settings.aggregator, identity, pin))
            aggregator = AggregatorClient(channel, key, settings.name, heads)
            ledger, renewal = OwnerLedger(state, self._clock), reloading_pin(pin)
            decisions, uploader, settlement = self._bookkeeping(aggregator, ledger, renewal)
            downloader = Downloader(coordinator, settings.largest_value, self._stopping)
            tasks, policy = _tasks(settings), _policy(settings)
            kept = KeptTensors(
                settings.state, ledger.past.kept_rounds, settlement.settle_job, self._tell
            )
            private = {
                name: each for name, task in settings.tasks.items() if (each := task.private)
            }
            privacy = PrivacyAccount(ledger, private, self._tell)
            steps = (decisions, downloader, uploader, settlement, kept, privacy)
            participation = Participation(
                policy, *steps, aggregator, tasks, self._stopping, self._tell
            )
            session = CoordinatorSession(
                settings, coordinator_serves, coordinator, participation, self._stopping
            )
            watch = SettlementWatch(participation, settlement, self._stopping, self._tell)
            self._participation, self._coordinator = participation, coordinator
            parts = _Parts(session, watch, decisions, tasks, identity, channel.close, state)
            opened.pop_all()
        self._thread = NodeThread(lambda: self._attend(parts), "owner")

    def _attend(self, parts: "_Parts") -> int:
        try:
            with _started(parts.tasks.values()), parts.watch:
                log.info(
                    "owner is ready",
                    tasks=sorted(parts.tasks),
                    fingerprint=parts.identity.fingerprint,
                )
                parts.session.run(once=self._once)
                parts.watch.finish()
        finally:
            parts.decisions.close()
            parts.hang_up()  # whoever still waits for the aggregator ends now
            threads = (parts.session, parts.watch)
            if all(thread.has_ended(SHUTDOWN_SECONDS) for thread in threads):
                parts.state.close()
        return 0

    def _bookkeeping(
        self, aggregator: AggregatorClient, ledger: OwnerLedger, pinned: Reloading[PeerTrust]
    ) -> tuple[DecisionLog, Uploader, Settlement]:
        """What writes to the ledger in a round: of its decisions, its update, and its end."""

        def destination() -> str:
            return pinned.current().fingerprints

        settings, tell = self._settings, self._tell
        rules = {
            name: DisclosureRules(frozenset(task.metrics), task.clip)
            for name, task in settings.tasks.items()
        }
        spool = UpdateSpool(settings.state, ledger.past.may_leave_again, tell)
        receipts = Receipts(aggregator, ledger, tell)
        owner = (settings.federation, settings.name)
        return (
            DecisionLog(ledger, receipts, destination, tell),
            Uploader(aggregator, ledger, spool, receipts, rules, destination, self._stopping, tell),
            Settlement(aggregator, ledger, spool, receipts, *owner, self._clock, tell),
        )

    def wait(self) -> int:
        """Wait until it has ended. Raises CairnError where the coordinator cannot be reached or refuses this owner."""
        return self._thread.wait() if self._thread is not None else 0

    def stop(self) -> None:
        """Say so in the round under way, and end. From any thread."""
        self._stopping.set()
        if self._participation is not None:
            self._participation.leave()
        if self._coordinator is not None:
            self._coordinator.close()


@dataclass(frozen=True)
class _Parts:
    """What an owner's node is made of, and what it has opened."""

    session: CoordinatorSession
    watch: SettlementWatch
    decisions: DecisionLog
    tasks: Mapping[str, TrainingSupervisor]
    identity: Identity
    hang_up: Callable[[], None]  # on the aggregator
    state: StateDirectory


def _coordinator(
    settings: OwnerSettings, identity: Identity
) -> tuple[CoordinatorClient, Callable[[], bool]]:
    """What calls the coordinator, and what finds out whether it is there and is one."""
    address, file = settings.coordinator, settings.coordinator_certificate
    pin = None
    if file is not None:
        pin = load_pinned(file, Role.COORDINATOR, settings.federation, datetime.now(UTC))
    trust = CoordinatorTrust(address, identity, pin)
    channel = dial(address, identity, trusted=trust.certificates)

    def serves() -> bool:
        # Its health says why it cannot be reached, in gRPC's words, before it is looked at.
        with dial(address, identity, trusted=trust.certificates if pin else None) as first:
            up = is_serving(first, CALL_SECONDS)
        trust.certificates()
        return up

    return CoordinatorClient(channel, trust.forget), serves


def _tasks(settings: OwnerSettings) -> dict[str, TrainingSupervisor]:
    if not settings.tasks:
        log.warning("no task is configured: every invitation will be declined")
    return {
        name: TrainingSupervisor(
            settings.name,
            TaskSource(
                name, task.file, task.data, task.min_examples, task.environment, sandbox_of(task)
            ),
        )
        for name, task in settings.tasks.items()
    }


@contextmanager
def _started(processes: Collection[TrainingSupervisor]) -> Iterator[None]:
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            process.close()


def _policy(settings: OwnerSettings) -> Policy:
    trusted = settings.trusted
    return Policy(
        federation=settings.federation,
        owner=settings.name,
        floor=settings.floor,
        largest_share=settings.largest_share,
        tasks={
            name: TaskRules(
                ranges=task.settings,
                max_rounds=task.max_rounds,
                encodings=frozenset(ENCODINGS[word] for word in task.encodings),
                contents=frozenset(CONTENTS[word] for word in task.contents),
                rules=frozenset(RULES[word] for word in task.rules),
                optimizers=frozenset(OPTIMIZERS[word] for word in task.optimizers),
                max_failures=task.max_failures,
                work_seconds=task.work_seconds,
                min_cell=task.min_cell,
                max_statistics=task.max_statistics,
                privacy_limit=privacy_limit_of(task),
                private=task.private,
            )
            for name, task in settings.tasks.items()
        },
        trusted=None if trusted is None else frozenset({*trusted, settings.name}),
        largest_model_bytes=settings.largest_model_megabytes << 20,
    )
