"""The coordinator's calls to the aggregator. Makes `cairn.v1.ReleaseService`'s and `cairn.v1.RecordService`'s.

Everything signed is verified here against the pinned key, so the rest of the coordinator handles only
what the aggregator really said.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cairn import __version__
from cairn.errors import CairnError, InvalidMessage, Unavailable
from cairn.ledger.chain import Entry
from cairn.model.safetensors_writer import ModelWriter
from cairn.model.schema import Schema
from cairn.protocol.limits import MAX_ROUND_SECONDS
from cairn.protocol.messages import PROTOCOL, Manifest, digest_of, manifest_from_bytes
from cairn.protocol.statements import MANIFEST, verified, verified_head, verified_statement
from cairn.protocol.words import known
from cairn.runtime.timeouts import CALL_SECONDS, IDLE_SECONDS, SHUTDOWN_SECONDS
from cairn.transport.framing import chunks_of
from cairn.transport.retry import retry_while_unavailable
from cairn.transport.status import translated
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc
from cairn.v1 import round_pb2 as pb
from coordinator.release_download import Release, ReleaseDownload
from coordinator.schedule import Step

T = TypeVar("T")

_PAGE = 1000  # entries: the most that the contract allows
_ENDED = {aggregator_pb2.ROUND_STATE_RELEASED, aggregator_pb2.ROUND_STATE_ABORTED}


@dataclass(frozen=True)
class OpenedRound:
    """A round with its verified manifest; `digest` is the manifest's."""

    manifest: Manifest
    digest: bytes
    signed: pb.Signed


@dataclass(frozen=True)
class Page:
    """Entries as they came, and the verified head of the whole ledger, with its signed form."""

    entries: tuple[Entry, ...]
    head: pb.LedgerHead
    signed_head: pb.Signed


class AggregatorClient:
    """Speaks to one aggregator for one job. Waits for it as patiently as the settings say.

    Everything but `opened`, `statement` and `entries` raises Fenced once another process has registered the job.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        address: str,
        key: Ed25519PublicKey,
        patience_seconds: float,
        stopping: threading.Event,
    ) -> None:
        self._stub = aggregator_pb2_grpc.ReleaseServiceStub(channel)
        self._records = aggregator_pb2_grpc.RecordServiceStub(channel)
        self.address = address
        self._peer = f"the aggregator at {address}"
        self._key = key
        self._patience_seconds = patience_seconds
        self._stopping = stopping
        self._process = secrets.token_bytes(32)
        self._epoch = 0  # until the aggregator has registered the job, and so has been reached

    def register(
        self, job_spec: bytes, *, ended: bool = False
    ) -> aggregator_pb2.RegisterJobResponse:
        """Take charge of the job, or say that it has `ended` before its last round; returns how far it is."""
        request = aggregator_pb2.RegisterJobRequest(
            job_spec=job_spec,
            protocol=PROTOCOL,
            software=__version__,
            process=self._process,
            ended=ended,
        )
        status: aggregator_pb2.RegisterJobResponse = self._call(
            lambda: self._stub.RegisterJob(request, timeout=CALL_SECONDS)
        )
        self._epoch = status.epoch
        return status

    def submit_model(self, job: str, digest: bytes, payload: memoryview) -> None:
        """Bring the model that the job's next round starts from; the same again changes nothing."""
        header = aggregator_pb2.SubmitModelHeader(job=job, epoch=self._epoch, digest=digest)

        def parts() -> Iterator[aggregator_pb2.SubmitModelRequest | memoryview]:
            yield aggregator_pb2.SubmitModelRequest(header=header)
            yield from chunks_of(payload)

        self._call(lambda: self._stub.SubmitModel(parts(), timeout=MAX_ROUND_SECONDS))

    def open(self, job: str, step: Step, cohort: list[str], base_digest: bytes) -> OpenedRound:
        request = aggregator_pb2.OpenRoundRequest(
            job=job,
            round=step.round,
            phase=step.phase,
            cohort=cohort,
            base_digest=base_digest,
            epoch=self._epoch,
        )
        answer = self._call(lambda: self._stub.OpenRound(request, timeout=CALL_SECONDS))
        opened = self.opened(answer.manifest)
        asked = (job, step.round, step.phase, tuple(cohort), base_digest)
        manifest = opened.manifest
        got = (manifest.job, manifest.round, manifest.phase, manifest.cohort, manifest.base_digest)
        if asked != got:
            raise InvalidMessage("the aggregator signed another round than was asked for")
        return opened

    def opened(self, signed: pb.Signed) -> OpenedRound:
        body = verified(self._key, MANIFEST, signed)
        return OpenedRound(manifest_from_bytes(body), digest_of(body), signed)

    def statement(self, signed: pb.Signed) -> pb.ReleaseStatement:
        return verified_statement(self._key, signed)

    def watch(self, opened: OpenedRound, seconds: float) -> aggregator_pb2.WatchRoundResponse:
        """Wait for the round's end; `seconds` is its own deadline.

        After the deadline the aggregator adds up, and writes the release. Raises CairnError where it answers and
        that takes longer than the round itself, and a minute: then something hangs there. One that cannot be
        reached meanwhile is waited for as patiently as in any other call.
        """
        request = aggregator_pb2.WatchRoundRequest(manifest_digest=opened.digest, epoch=self._epoch)
        end = time.monotonic() + 2 * seconds + 2 * IDLE_SECONDS

        def follow() -> aggregator_pb2.WatchRoundResponse:
            # After the end too it is asked, shortly: it may have been away, and tells now how the round ended.
            left = max(CALL_SECONDS, end - time.monotonic())
            for answer in self._stub.WatchRound(request, timeout=min(left, MAX_ROUND_SECONDS)):
                known(aggregator_pb2.RoundState, answer.state, "state")
                if answer.state in _ENDED:
                    ending: aggregator_pb2.WatchRoundResponse = answer
                    return ending
                if time.monotonic() >= end:
                    raise CairnError(
                        f"{self._peer} has not ended round {opened.manifest.round}, whose deadline is long past:"
                        " see its log, start it again, and run this again: the job goes on from its checkpoint"
                    )
            raise Unavailable("the stream ended before the round did")

        return self._call(follow)

    def collect(
        self, manifest_digest: bytes, schema: Schema, begin: Callable[[Schema], ModelWriter]
    ) -> Release:
        """Fetch a release into the file that `begin` begins, and verify its statement and its bytes."""
        request = aggregator_pb2.CollectReleaseRequest(
            manifest_digest=manifest_digest, epoch=self._epoch
        )
        download = ReleaseDownload(self._stub, self._key, request, schema, begin)
        try:
            return self._call(download.fetch)
        except BaseException:
            download.discard()
            raise

    def entries(self, first: int) -> Page:
        """The ledger's entries from number `first` on, as many as one answer holds."""
        request = aggregator_pb2.ListEntriesRequest(first=first, limit=_PAGE)
        answer = self._call(lambda: self._records.ListEntries(request, timeout=CALL_SECONDS))
        entries = tuple(Entry(e.number, e.kind, e.body, e.head) for e in answer.entries)
        return Page(entries, verified_head(self._key, answer.head), answer.head)

    def abort(self, opened: OpenedRound) -> None:
        """End the round. For a coordinator that is told to stop: it waits for a moment only."""
        request = aggregator_pb2.AbortRoundRequest(manifest_digest=opened.digest, epoch=self._epoch)

        def end() -> None:
            with translated():
                self._stub.AbortRound(request, timeout=SHUTDOWN_SECONDS)

        retry_while_unavailable(end, self._peer, SHUTDOWN_SECONDS, threading.Event())

    def _call(self, call: Callable[[], T]) -> T:
        def translated_call() -> T:
            with translated():
                return call()

        return retry_while_unavailable(
            translated_call,
            self._peer,
            self._patience_seconds,
            self._stopping,
            reached_before=self._epoch > 0,
        )
