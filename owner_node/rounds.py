"""Takes one invitation from the owner's own decision to the receipt.

The order is the promise: decide first, then join, then fetch and check the model, then open the data.
"""

import threading
import time
from collections.abc import Mapping

import structlog

from cairn.errors import (
    CairnError,
    Conflict,
    InvalidMessage,
    NotFound,
    TooMuch,
    Unavailable,
    UpdateRefused,
    WrongState,
)
from cairn.messages import JobSpec, Manifest, job_spec_from_bytes, reason_word
from cairn.patience import patiently
from cairn.rpc import CALL_SECONDS
from cairn.task_loading import TaskFailed
from cairn.v1 import aggregator_pb2, coordinator_pb2
from cairn.v1 import round_pb2 as pb
from owner_node.aggregator_client import AggregatorClient
from owner_node.coordinator_client import CoordinatorClient
from owner_node.lease import Lease
from owner_node.policy import Declined, Policy
from owner_node.training_process import Trained, TrainingProcess, Work

log = structlog.get_logger()

_AGGREGATOR = "the aggregator"
_PARTING_SECONDS = 3.0  # a node that is told to stop does not wait long for an answer


class Rounds:
    """Takes part in rounds, one at a time."""

    def __init__(
        self,
        policy: Policy,
        coordinator: CoordinatorClient,
        aggregator: AggregatorClient,
        tasks: Mapping[str, TrainingProcess],
        stopping: threading.Event,
    ) -> None:
        self._policy = policy
        self._coordinator = coordinator
        self._aggregator = aggregator
        self._tasks = tasks
        self._stopping = stopping
        self._last: dict[str, tuple[int, int]] = {}
        self._cached: dict[str, bytes] = {}  # task → digest of the base that its memory holds
        self._lock = threading.Lock()
        self._current: tuple[bytes, TrainingProcess] | None = None
        self._dropped: set[bytes] = set()

    def take_part(self, invitation: coordinator_pb2.Invitation) -> None:
        """Answer an invitation and do what it asks. Never raises: a failure ends in a decline."""
        try:
            manifest, digest = self._aggregator.manifest(invitation.manifest)
            job = job_spec_from_bytes(invitation.job_spec)
        except CairnError as error:
            log.error("invitation refused", reason=str(error))
            return
        ids = {"job": manifest.job, "round": manifest.round}
        try:
            last = self._last.get(manifest.job, (0, 0))
            self._policy.check(manifest, job, invitation.job_spec, last)
            self._work(manifest, digest, job)
            self._last[manifest.job] = (manifest.round, manifest.phase)
        except (Declined, TaskFailed) as error:
            log.warning("declined", **ids, why=reason_word(error.reason), reason=str(error))
            self._decline(digest, error.reason)
        except InvalidMessage as error:
            log.error("invitation refused", **ids, reason=str(error))
        except (WrongState, NotFound) as error:
            log.warning("left out of the round", **ids, reason=str(error))
        except CairnError as error:
            log.error("round failed", **ids, reason=str(error))
        except Exception:  # the thread that takes part in rounds must outlive any one of them
            log.exception("round failed", **ids)
            self._decline(digest, pb.REASON_TASK_FAILED)

    def drop(self, manifest_digest: bytes) -> None:
        """The round has ended: give up the work on it, if there is any. From any thread."""
        with self._lock:
            self._dropped = {manifest_digest}
            if self._current is not None and self._current[0] == manifest_digest:
                self._current[1].cancel()

    def leave(self) -> None:
        """This node is told to stop: say so in the round under way, so that nobody waits for it."""
        with self._lock:
            current = self._current
        if current is not None:
            self._decline(current[0], pb.REASON_STOPPING, _PARTING_SECONDS)
            current[1].cancel()

    def _work(self, manifest: Manifest, digest: bytes, job: JobSpec) -> None:
        process = self._tasks[job.task]
        joined = patiently(
            lambda: self._aggregator.join(digest),
            _AGGREGATOR,
            manifest.lease_seconds,
            self._stopping,
        )
        deadline = time.monotonic() + joined.open_seconds
        if joined.update_accepted:
            log.info("update was accepted before", job=job.name, round=manifest.round)
            return
        with self._lock:
            if digest in self._dropped:
                raise WrongState("the round has ended")
            self._current = (digest, process)
        try:
            with Lease(
                lambda: self._aggregator.join(digest),
                joined.lease_seconds,
                lambda: self.drop(digest),
            ):
                self._fetch(manifest, job, process, deadline)
                trained = self._train(manifest, digest, job, process)
                self._push(manifest, digest, job, trained, deadline)
        finally:
            with self._lock:
                self._current = None

    def _fetch(
        self, manifest: Manifest, job: JobSpec, process: TrainingProcess, deadline: float
    ) -> None:
        """Bring the base into the training process's memory, unless it is there already."""
        base = process.base_buffer(job.schema)
        if self._cached.get(job.task) == manifest.base_digest:
            return
        self._cached.pop(job.task, None)

        def fetch() -> None:
            seconds = _until(deadline)
            self._coordinator.fetch(manifest.base_digest, job.schema, base, seconds)

        try:
            patiently(fetch, "the coordinator", _until(deadline), self._stopping)
        except InvalidMessage as error:
            raise Declined(str(error), pb.REASON_BASE_MISMATCH) from None
        except (Unavailable, NotFound) as error:
            raise Declined(str(error), pb.REASON_FETCH_FAILED) from None
        self._cached[job.task] = manifest.base_digest

    def _train(
        self, manifest: Manifest, digest: bytes, job: JobSpec, process: TrainingProcess
    ) -> Trained:
        with self._lock:
            if digest in self._dropped:
                raise WrongState("the round ended before this owner could train")
        work = Work(
            job=job.name,
            round=manifest.round,
            phase="train" if manifest.trains else "evaluate",
            settings=job.settings,
            schema=job.schema,
        )
        try:
            return process.run(work)
        except TaskFailed:
            with self._lock:
                ended = digest in self._dropped
            if ended:
                raise WrongState("the round ended while this owner was training") from None
            raise

    def _push(
        self,
        manifest: Manifest,
        digest: bytes,
        job: JobSpec,
        trained: Trained,
        deadline: float,
    ) -> None:
        payload_digest = job.schema.digest(trained.payload) if manifest.trains else b""
        header = aggregator_pb2.UpdateHeader(
            manifest_digest=digest,
            base_digest=manifest.base_digest,
            examples=trained.examples,
            metrics=trained.metrics,
            total_bytes=len(trained.payload),
        )
        tried = False

        def push() -> aggregator_pb2.Receipt:
            nonlocal tried
            if tried:  # the update may have arrived, and only its answer been lost
                receipt = self._aggregator.receipt(digest, payload_digest)
                if receipt is not None:
                    return receipt
                self._aggregator.join(digest)
            tried = True
            try:
                seconds = _until(deadline)
                return self._aggregator.submit(header, trained.payload, payload_digest, seconds)
            except UpdateRefused as error:
                if error.reason == pb.REASON_CORRUPT_UPDATE:
                    raise Unavailable(str(error)) from None
                raise
            except TooMuch as error:  # a push that broke off is still held; its watchdog ends it
                raise Unavailable(str(error)) from None

        try:
            receipt = patiently(push, _AGGREGATOR, _until(deadline), self._stopping)
        except (UpdateRefused, Conflict) as error:
            log.error("update refused", job=job.name, round=manifest.round, reason=str(error))
            return
        log.info(
            "update accepted",
            job=job.name,
            round=manifest.round,
            bytes=len(trained.payload),
            sha256=receipt.payload_digest.hex(),
        )

    def _decline(self, digest: bytes, reason: "pb.Reason", seconds: float = CALL_SECONDS) -> None:
        try:
            self._aggregator.decline(digest, reason, seconds)
        except CairnError as error:
            log.warning("could not decline", reason=str(error))


def _until(deadline: float) -> float:
    """The seconds left to a moment of the monotonic clock, but never none at all."""
    return max(1.0, deadline - time.monotonic())
