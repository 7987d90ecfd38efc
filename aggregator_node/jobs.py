"""The aggregator's jobs and rounds: registers, opens, closes and releases them.

What may be opened is decided by `policy`, how a round goes by `live_round`; this module ties them to
the store, so that whatever was promised to a peer is on the disk first.
"""

import secrets
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_node.live_round import ENDED, Closing, LiveRound
from aggregator_node.policy import Opening, Policy, check_opening
from aggregator_node.store import JobRow, RoundRow, Store
from cairn import __version__
from cairn.clock import Clock
from cairn.errors import CairnError, CallerNotAllowed, Conflict, NotFound, WrongState
from cairn.messages import (
    JobSpec,
    Manifest,
    digest_of,
    job_spec_from_bytes,
    manifest_from_bytes,
    manifest_to_bytes,
    reason_word,
)
from cairn.model_files import write_model
from cairn.statements import MANIFEST, RECEIPT, STATEMENT, sign
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb

log = structlog.get_logger()

_RECORD_SECONDS = 5.0
_KEPT_ROUNDS = 64  # ended rounds whose receipts can still be asked for


@dataclass(frozen=True)
class JobState:
    """What a coordinator is told when it registers a job, new or known."""

    floor: int
    last_round: int
    released: int
    open_manifest: pb.Signed | None
    last_statement: pb.Signed | None


class Jobs:
    """Everything this aggregator has under way. Every public method may be called from any thread."""

    def __init__(
        self,
        policy: Policy,
        lease_seconds: int,
        store: Store,
        signing_key: Ed25519PrivateKey,
        clock: Clock,
    ) -> None:
        """Take up the store; rounds that were open when the last process ended are aborted."""
        self._policy = policy
        self._lease_seconds = lease_seconds
        self._store = store
        self._key = signing_key
        self._clock = clock
        self._lock = threading.RLock()
        self._live: dict[bytes, LiveRound] = {}
        self._ended: deque[bytes] = deque()
        self._on_job_end: Callable[[], None] = lambda: None
        for row in store.open_rounds():
            self._record_abort(row, pb.REASON_AGGREGATOR_RESTARTED, ())
        store.clear_left_over_releases()

    def register(self, coordinator: str, body: bytes) -> JobState:
        """Register a job, or tell the state of a known one."""
        spec = job_spec_from_bytes(body)
        self._policy.check_job(spec)
        with self._lock:
            row = self._store.job(spec.name)
            if row is None:
                with self._store.transaction():
                    self._store.add_job(JobRow(spec.name, coordinator, body))
                    facts = {"job": spec.name, "job_digest": digest_of(body).hex()}
                    self._store.append("job", facts)
                log.info("job registered", job=spec.name, coordinator=coordinator)
            elif row.coordinator != coordinator:
                raise CallerNotAllowed(f"{spec.name} is another coordinator's job")
            elif row.spec != body:
                raise Conflict(
                    f"another job was registered under the name {spec.name}: give the changed job"
                    " a new name"
                )
            return self._state_of(spec)

    def open(self, coordinator: str, job: str, opening: Opening) -> pb.Signed:
        """Commit the round's cohort and sign its manifest; again for a repeated request."""
        with self._lock:
            row = self._row_of(coordinator, job)
            spec = job_spec_from_bytes(row.spec)
            known = self._store.find_round(job, opening.round, opening.phase)
            if known is not None:
                return _same_opening(known, opening)
            if any(live.is_open and live.manifest.job == job for live in self._live.values()):
                raise WrongState(f"a round of {job} is open")
            progress = self._store.progress(job)
            check_opening(self._policy, spec, progress, opening)
            manifest = Manifest(
                federation=spec.federation,
                job=job,
                job_digest=digest_of(row.spec),
                round=opening.round,
                phase=opening.phase,
                cohort=opening.cohort,
                base_digest=opening.base_digest,
                previous_release_digest=progress.release_digest,
                weighting=spec.weighting,
                floor=self._policy.floor_of(spec),
                deadline_unix_ms=self._clock.unix_ms() + 1000 * spec.round_deadline_seconds,
                lease_seconds=self._lease_seconds,
                nonce=secrets.token_bytes(32),
                ledger_head=self._store.head(),
            )
            return self._start(manifest, spec)

    def live(self, manifest_digest: bytes) -> LiveRound:
        """A round that is open or has just ended.

        Raises WrongState for one that ended longer ago, NotFound for one that never was.
        """
        with self._lock:
            live = self._live.get(manifest_digest)
        if live is None:
            self._store.round(manifest_digest)
            raise WrongState("the round has ended")
        return live

    def row(self, coordinator: str, manifest_digest: bytes) -> RoundRow:
        """What is recorded of a round, for the coordinator of its job."""
        row = self._store.round(manifest_digest)
        self._row_of(coordinator, row.job)
        return row

    def when_job_ends(self, call: Callable[[], None]) -> None:
        """Call this when a job has been collected to its end."""
        self._on_job_end = call

    def live_or_none(self, manifest_digest: bytes) -> LiveRound | None:
        with self._lock:
            return self._live.get(manifest_digest)

    def abort_all(self) -> None:
        """End every open round, because the process is about to end, and wait for the records."""
        with self._lock:
            under_way = [live for live in self._live.values() if live.state not in ENDED]
        for live in under_way:
            with suppress(WrongState):  # sealed meanwhile: then it is released
                live.abort(pb.REASON_AGGREGATOR_RESTARTED)
        for live in under_way:
            live.wait_for_end(_RECORD_SECONDS)

    def _state_of(self, spec: JobSpec) -> JobState:
        progress = self._store.progress(spec.name)
        last = self._store.last_release(spec.name)
        open_rows = [row for row in self._store.open_rounds() if row.job == spec.name]
        return JobState(
            floor=self._policy.floor_of(spec),
            last_round=progress.opened,
            released=progress.released,
            open_manifest=pb.Signed.FromString(open_rows[0].manifest) if open_rows else None,
            last_statement=pb.Signed.FromString(last.statement)
            if last and last.statement
            else None,
        )

    def _row_of(self, coordinator: str, job: str) -> JobRow:
        row = self._store.job(job)
        if row is None:
            raise NotFound(f"there is no job {job} here: register it first")
        if row.coordinator != coordinator:
            raise CallerNotAllowed(f"{job} is another coordinator's job")
        return row

    def _start(self, manifest: Manifest, spec: JobSpec) -> pb.Signed:
        body = manifest_to_bytes(manifest)
        digest = digest_of(body)
        signed = sign(self._key, MANIFEST, body)
        row = RoundRow(
            digest, manifest.job, manifest.round, manifest.phase, signed.SerializeToString()
        )
        with self._store.transaction():
            self._store.save_round(row)
            self._store.append("open", _facts(row, cohort=list(manifest.cohort)))
        live = LiveRound(digest, manifest, spec.schema, self._clock, self._sign_receipt)
        self._live[digest] = live
        name = f"round-{manifest.job}-{manifest.round}"
        threading.Thread(
            target=self._see_to_end, args=(live, row, spec), name=name, daemon=True
        ).start()
        log.info(
            "round opened", job=manifest.job, round=manifest.round, cohort=len(manifest.cohort)
        )
        return signed

    def _sign_receipt(self, receipt: aggregator_pb2.Receipt) -> pb.Signed:
        return sign(self._key, RECEIPT, receipt.SerializeToString(deterministic=True))

    def _see_to_end(self, live: LiveRound, row: RoundRow, spec: JobSpec) -> None:
        """Wait for the round's end and make it durable before anybody is told of it."""
        reason: pb.Reason = pb.REASON_STORAGE_FAILED
        try:
            closing = live.await_seal()
            if closing is None:
                reason = live.reason
                self._record_abort(row, reason, live.exclusions)
            else:
                self._record_release(live, row, spec, closing)
                reason = pb.REASON_UNSPECIFIED
        except CairnError as error:
            reason = pb.REASON_NON_FINITE
            log.error("round not released", job=row.job, round=row.number, error=str(error))
            self._record_abort(row, reason, live.exclusions)
        except Exception:
            log.exception("round could not be recorded", job=row.job, round=row.number)
        state = (
            aggregator_pb2.ROUND_STATE_ABORTED if reason else aggregator_pb2.ROUND_STATE_RELEASED
        )
        live.end(state, reason)
        self._forget_old(live.digest)
        if not reason and self._is_complete(spec):
            self._on_job_end()

    def _is_complete(self, spec: JobSpec) -> bool:
        return self._store.progress(spec.name).released >= spec.rounds

    def _record_release(
        self, live: LiveRound, row: RoundRow, spec: JobSpec, closing: Closing
    ) -> None:
        manifest = live.manifest
        release_digest = manifest.base_digest
        if manifest.trains:
            path = self._store.release_path(row.manifest_digest)
            release_digest = write_model(path, spec.schema, closing.payload)
        replaced = self._store.last_release(row.job) if manifest.trains else None
        with self._store.transaction():
            statement = pb.ReleaseStatement(
                manifest_digest=row.manifest_digest,
                federation=manifest.federation,
                job=manifest.job,
                round=manifest.round,
                phase=manifest.phase,
                release_digest=release_digest,
                base_digest=manifest.base_digest,
                contributors=closing.contributors,
                exclusions=[pb.Exclusion(owner=o, reason=r) for o, r in closing.exclusions],
                rule=pb.RULE_MEAN,
                weighting=manifest.weighting,
                metrics=closing.metrics,
                ledger_head=self._store.head(),
                sealed_unix_ms=self._clock.unix_ms(),
                software=__version__,
            )
            signed = sign(self._key, STATEMENT, statement.SerializeToString(deterministic=True))
            released = replace(
                row,
                state=aggregator_pb2.ROUND_STATE_RELEASED,
                exclusions=closing.exclusions,
                statement=signed.SerializeToString(),
                release_digest=release_digest,
            )
            self._store.save_round(released)
            facts = _facts(
                row, release_digest=release_digest.hex(), contributors=closing.contributors
            )
            self._store.append("release", facts)
        if replaced is not None:
            self._store.release_path(replaced.manifest_digest).unlink(missing_ok=True)
        log.info("released", job=row.job, round=row.number, contributors=closing.contributors)

    def _record_abort(
        self, row: RoundRow, reason: "pb.Reason", exclusions: tuple[tuple[str, "pb.Reason"], ...]
    ) -> None:
        aborted = replace(
            row, state=aggregator_pb2.ROUND_STATE_ABORTED, reason=reason, exclusions=exclusions
        )
        with self._store.transaction():
            self._store.save_round(aborted)
            self._store.append("abort", _facts(row, reason=reason_word(reason)))
        log.warning("round aborted", job=row.job, round=row.number, reason=reason_word(reason))

    def _forget_old(self, digest: bytes) -> None:
        with self._lock:
            self._ended.append(digest)
            while len(self._ended) > _KEPT_ROUNDS:
                self._live.pop(self._ended.popleft(), None)


def _facts(row: RoundRow, **more: object) -> dict[str, object]:
    """What the ledger says of a round; digests and names, no values."""
    return {
        "job": row.job,
        "round": row.number,
        "phase": pb.Phase.Name(row.phase).removeprefix("PHASE_").lower(),
        "manifest_digest": row.manifest_digest.hex(),
        **more,
    }


def _same_opening(known: RoundRow, opening: Opening) -> pb.Signed:
    signed = pb.Signed.FromString(known.manifest)
    manifest = manifest_from_bytes(signed.body)
    if (manifest.cohort, manifest.base_digest) != (opening.cohort, opening.base_digest):
        raise WrongState(
            f"round {opening.round} was opened with another cohort or base; neither can change"
        )
    return signed
