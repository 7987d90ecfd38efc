"""Makes durable how rounds begin and end, and signs the statement of a release.

The average, and the state of the optimizer where there is one, are on the disk before their rows, and the rows and the
ledger's entry are one transaction, so nothing is released that is not recorded.
"""

from contextlib import suppress
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_node.aggregation.rule import Rule
from aggregator_node.aggregation.suppression import suppressed_pieces
from aggregator_node.events import (
    MetricsLeftOut,
    Observer,
    RoundAborted,
    RoundOpened,
    RoundReleased,
)
from aggregator_node.optimizers.step import step_of
from aggregator_node.rounds.bases import Bases
from aggregator_node.rounds.disclosure import ReleaseOverlap
from aggregator_node.rounds.release_files import ReleaseDigests, write_model, write_step
from aggregator_node.rounds.results import SealedRound
from aggregator_node.rounds.spending import Spending
from aggregator_node.rounds.upload import RoundContext
from aggregator_node.storage.rows import JobRow, RoundRow, spec_of
from aggregator_node.storage.store import Store
from cairn import __version__
from cairn.errors import InvalidMessage, UsageError, WrongState
from cairn.model.validation import Bounds
from cairn.protocol.aggregation import aggregation_to_pb
from cairn.protocol.limits import MIN_COHORT
from cairn.protocol.messages import Manifest, digest_of, manifest_from_bytes, parse
from cairn.protocol.statements import STATEMENT, privacy_in_words, sign
from cairn.protocol.words import reason_word, word_of
from cairn.runtime.clock import Clock
from cairn.runtime.failpoints import failpoint
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb


class RoundRecorder:
    """Writes the beginnings and ends of rounds to the store."""

    def __init__(
        self,
        store: Store,
        signing_key: Ed25519PrivateKey,
        clock: Clock,
        overlap: ReleaseOverlap,
        bases: Bases,
        tell: Observer,
    ) -> None:
        """Take up what was released before; rounds that were open when the last process ended are aborted."""
        self._store = store
        self._key = signing_key
        self._clock = clock
        self._overlap = overlap
        self._bases = bases
        self._spending = Spending(store)
        self._tell = tell
        self._remember_releases()
        for row in store.open_rounds():
            self.abort(row, pb.REASON_AGGREGATOR_RESTARTED, ())
        store.clear_left_over_releases()

    def base_of(self, context: RoundContext) -> memoryview | None:
        """As `Bases.of`."""
        return self._bases.of(context)

    def check(self, context: RoundContext) -> None:
        """Raise WrongState where a release over the whole cohort may not stand beside an earlier one, or cannot be made.

        So it is where the job's privacy budget does not allow it.
        """
        self._spending.check(context)
        self._overlap.check(context, context.manifest.cohort)
        last = self._store.last_release(context.manifest.job)
        if last is None or not context.manifest.trains:
            return
        kept = self._store.optimizer_digest(last.manifest_digest)
        if kept is not None and not self._store.optimizer_path(last.manifest_digest).exists():
            raise WrongState(
                f"the aggregator has lost what the optimizer of {last.job} keeps: its operator puts the file back, or a"
                " new job begins from the last release",
                pb.REASON_STORAGE_FAILED,
            )

    def open(self, row: RoundRow, manifest: Manifest) -> None:
        """Record a signed manifest, before anybody receives it."""
        cohort, commitment = manifest.cohort, manifest.draw_commitment
        # For everybody to check the draw against that the statement makes known.
        drawn = {"draw_commitment": commitment.hex()} if commitment else {}
        with self._store.transaction():
            self._store.save_round(row)
            self._store.append("open", _facts(row, cohort=list(cohort), **drawn))
            failpoint("aggregator.open.before_commit")
        self._tell(RoundOpened(row.job, row.number, len(cohort)))

    def release(self, row: RoundRow, context: RoundContext, sealed: SealedRound) -> None:
        """Keep the average, and sign and record its statement.

        Raises WrongState, and keeps nothing, where it may not be released beside an earlier release. Where only
        its metrics may not, it is released without metrics.
        """
        floor = context.manifest.floor
        averaged = context.job.aggregation.averages_over(len(sealed.contributors), floor)
        if not context.manifest.trains:
            averaged = len(sealed.contributors)
        if averaged < max(MIN_COHORT, floor):
            raise AssertionError("a release of fewer owners than the floor was asked for")
        says_metrics = self._overlap.add(
            row.manifest_digest, context, sealed.contributors, has_metrics=bool(sealed.metrics)
        )
        if sealed.metrics and not says_metrics:
            sealed = replace(sealed, metrics={})
            self._tell(MetricsLeftOut(row.job, row.number))
        replaced = self._store.last_release(row.job) if context.manifest.trains else None
        try:
            self._release(row, context, sealed)
        except BaseException:
            self._overlap.forget(row.manifest_digest, context)
            self._store.delete_release(row.manifest_digest)
            raise
        failpoint("aggregator.release.after_commit")
        with suppress(OSError):  # the next start clears what is left over
            self._store.first_models.drop(context.manifest.job_digest)
            if replaced is not None:
                self._store.delete_release(replaced.manifest_digest)
        self._tell(RoundReleased(row.job, row.number, len(sealed.contributors)))

    def _release(self, row: RoundRow, context: RoundContext, sealed: SealedRound) -> None:
        manifest = context.manifest
        digests = ReleaseDigests(model=manifest.base_digest)
        if manifest.trains:
            digests = self._write(row, context, sealed.rule)
            failpoint("aggregator.release.file_written")
        release_digest = digests.model
        privacy = self._spending.after(context, sealed.contributors)
        with self._store.transaction():
            self._check_open(row)
            statement = self._state(row, context, sealed, release_digest, privacy)
            signed = sign(self._key, STATEMENT, statement.SerializeToString(deterministic=True))
            released = replace(
                row,
                state=aggregator_pb2.ROUND_STATE_RELEASED,
                exclusions=sealed.exclusions,
                statement=signed.SerializeToString(),
                release_digest=release_digest,
            )
            self._store.save_round(released)
            facts = _facts(
                row,
                release_digest=release_digest.hex(),
                base_digest=manifest.base_digest.hex(),
                contributors=len(sealed.contributors),
                statement_digest=digest_of(signed.body).hex(),
                **privacy_in_words(statement),
            )
            if digests.optimizer_state:
                self._store.save_optimizer_digest(row.manifest_digest, digests.optimizer_state)
                facts["optimizer_digest"] = digests.optimizer_state.hex()
            self._store.append("release", facts)
            failpoint("aggregator.release.before_commit")

    def _write(self, row: RoundRow, context: RoundContext, rule: Rule) -> ReleaseDigests:
        """Write the model that is released, and the optimizer's state where there is one.

        Of statistics, what is too small is left out before anything is written.
        """
        schema, result = context.job.schema, rule.result_blocks()
        if context.job.statistics is not None:
            result = suppressed_pieces(context.job.statistics, result)
        base = self._bases.of(context)  # nothing is built upon one that was changed meanwhile
        step = step_of(schema, context.job.aggregation)
        if step is None or base is None:
            path = self._store.release_path(row.manifest_digest)
            return ReleaseDigests(write_model(path, schema, result))
        return write_step(self._store, row, step, base, result)

    def abort(
        self, row: RoundRow, reason: "pb.Reason", exclusions: tuple[tuple[str, "pb.Reason"], ...]
    ) -> None:
        """Record that the round ended without a release; its number is burnt.

        Raises WrongState, and changes nothing, where its end is recorded already.
        """
        aborted = replace(
            row, state=aggregator_pb2.ROUND_STATE_ABORTED, reason=reason, exclusions=exclusions
        )
        with self._store.transaction():
            self._check_open(row)
            self._store.save_round(aborted)
            self._store.append("abort", _facts(row, reason=reason_word(reason)))
        self._tell(RoundAborted(row.job, row.number, reason))

    def end_of(self, row: RoundRow) -> "pb.Reason":
        """Why a round that has ended has no release; unspecified where it has one."""
        return self._store.round(row.manifest_digest).reason

    def _check_open(self, row: RoundRow) -> None:
        if self._store.round(row.manifest_digest).state != aggregator_pb2.ROUND_STATE_OPEN:
            raise WrongState("the round's end is recorded already", pb.REASON_ROUND_ENDED)

    def _remember_releases(self) -> None:
        released = aggregator_pb2.ROUND_STATE_RELEASED
        for row in self._store.rounds():
            if row.state != released or row.statement is None:
                continue
            job = self._store.job(row.job)
            if job is None:
                continue
            context = self._context_of(row, job)
            stated = parse(pb.ReleaseStatement, parse(pb.Signed, row.statement).body)
            owners = set(context.manifest.cohort) - {e.owner for e in stated.exclusions}
            self._overlap.remember(
                row.manifest_digest, context, owners, has_metrics=bool(stated.metrics)
            )

    def _context_of(self, row: RoundRow, job: JobRow) -> RoundContext:
        """Of a round that was released before this process began.

        Raises UsageError where another version of Cairn did: what this one cannot read it could not keep apart
        from its own releases.
        """
        try:
            manifest = manifest_from_bytes(parse(pb.Signed, row.manifest).body)
            return RoundContext(manifest, spec_of(job.spec), Bounds())
        except InvalidMessage:
            raise UsageError(
                f"the state in {self._store.path} has releases of another version of Cairn, such as round"
                f" {row.number} of {row.job}: go on with that version, or name an empty directory as state in"
                " the aggregator's file and in those of its owners, and begin its jobs anew"
            ) from None

    def _state(
        self,
        row: RoundRow,
        context: RoundContext,
        sealed: SealedRound,
        release_digest: bytes,
        privacy: pb.Privacy | None,
    ) -> pb.ReleaseStatement:
        manifest = context.manifest
        number, head = self._store.ledger_head()
        return pb.ReleaseStatement(
            manifest_digest=row.manifest_digest,
            federation=manifest.federation,
            job=manifest.job,
            round=manifest.round,
            phase=manifest.phase,
            release_digest=release_digest,
            base_digest=manifest.base_digest,
            contributors=len(sealed.contributors),
            exclusions=[pb.Exclusion(owner=o, reason=r) for o, r in sealed.exclusions],
            aggregation=aggregation_to_pb(manifest.aggregation),
            weighting=manifest.weighting,
            encoding=manifest.encoding,
            metrics=sealed.metrics,
            ledger_head=head,
            ledger_number=number,
            floor=manifest.floor,
            commitments=sealed.commitments,
            draw_seed=context.draw_seed,
            sealed_unix_ms=self._clock.unix_ms(),
            software=__version__,
            privacy=privacy,
        )


def _facts(row: RoundRow, **more: object) -> dict[str, object]:
    """What the ledger says of a round; digests and names, no values."""
    return {
        "job": row.job,
        "round": row.number,
        "phase": word_of(pb.Phase, row.phase),
        "manifest_digest": row.manifest_digest.hex(),
        **more,
    }
