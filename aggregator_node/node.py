"""Assembles an aggregator and runs it until it is told to stop."""

import threading
from datetime import UTC, datetime

import structlog

from aggregator_node.departure import Departure
from aggregator_node.intake_service import IntakeService
from aggregator_node.jobs import Jobs
from aggregator_node.policy import Policy
from aggregator_node.record_service import RecordService
from aggregator_node.release_service import ReleaseService
from aggregator_node.settings import AggregatorSettings
from aggregator_node.store import Store
from cairn.clock import Clock
from cairn.identity import NodeName, Role, load_identity, load_signing_key
from cairn.process import forbid_core_dumps, on_stop_signal, start_logging
from cairn.rpc import Listener
from cairn.v1.aggregator_pb2_grpc import (
    add_IntakeServiceServicer_to_server,
    add_RecordServiceServicer_to_server,
    add_ReleaseServiceServicer_to_server,
)

log = structlog.get_logger()

_COORDINATORS = 4
_LARGEST_JOB_SPEC_BYTES = 64 << 20
_GRACE_SECONDS = 5.0
_LOOK_SECONDS = 0.5  # how often an aggregator for one job looks whether it may stop


def run(settings: AggregatorSettings, *, once: bool) -> int:
    """Serve until SIGTERM or SIGINT, or with `once` until its coordinator has left.

    Raises UsageError for an identity, an address or a state directory that cannot be used.
    """
    forbid_core_dumps()
    start_logging(federation=settings.federation, node=settings.name)
    clock = Clock()
    node = NodeName(settings.federation, Role.AGGREGATOR, settings.name)
    identity = load_identity(settings.identity, node, datetime.now(UTC))
    signing_key = load_signing_key(settings.identity.signing_key)
    store = Store(settings.state)
    policy = Policy(settings.federation, frozenset(settings.owners), settings.floor)
    jobs = Jobs(policy, settings.lease_seconds, store, signing_key, clock)
    departure = Departure(settings.patience_seconds, clock)

    intake = Listener(identity, long_callers=len(settings.owners))
    intake.add(add_IntakeServiceServicer_to_server, IntakeService(jobs, clock))
    intake.add(add_RecordServiceServicer_to_server, RecordService(store))
    release = Listener(identity, long_callers=_COORDINATORS, message_bytes=_LARGEST_JOB_SPEC_BYTES)
    release.add(add_ReleaseServiceServicer_to_server, ReleaseService(jobs, store, departure))
    release.add(add_RecordServiceServicer_to_server, RecordService(store))

    stopping = threading.Event()
    on_stop_signal(stopping.set)
    intake.start(settings.listen_owners)
    release.start(settings.listen_coordinators)
    log.info(
        "aggregator is ready",
        owners_at=settings.listen_owners,
        coordinators_at=settings.listen_coordinators,
        floor=settings.floor,
        fingerprint=identity.fingerprint,
    )
    while not stopping.wait(_LOOK_SECONDS):
        if once and departure.is_due(completed=jobs.are_released()):
            break
    log.info("aggregator is stopping")
    jobs.abort_all()
    for listener in (intake, release):
        listener.stop(_GRACE_SECONDS)
    store.close()
    return 0
