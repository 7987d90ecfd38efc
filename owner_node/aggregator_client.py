"""The owner's calls to the aggregator. Makes `cairn.v1.IntakeService`'s and `RecordService`'s."""

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cairn import __version__
from cairn.errors import CairnError, InvalidMessage, NotFound, Unavailable
from cairn.model.schema import CHUNK_BYTES
from cairn.protocol.messages import PROTOCOL, Manifest, digest_of, manifest_from_bytes
from cairn.protocol.reasons import DEPENDING_ON_DATA
from cairn.protocol.statements import (
    MANIFEST,
    verified,
    verified_receipt,
    verified_statement,
)
from cairn.runtime.failpoints import failpoint
from cairn.runtime.timeouts import CALL_SECONDS
from cairn.transport.framing import chunks_of
from cairn.transport.status import translated
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc
from cairn.v1 import round_pb2 as pb
from owner_node.records.history import Pushed
from owner_node.records.ledger_head import LedgerHeadTracker


class AggregatorClient:
    """Speaks to the one aggregator whose certificate and signing key this owner has pinned."""

    def __init__(
        self, channel: grpc.Channel, key: Ed25519PublicKey, owner: str, heads: LedgerHeadTracker
    ) -> None:
        self._intake = aggregator_pb2_grpc.IntakeServiceStub(channel)
        self._records = aggregator_pb2_grpc.RecordServiceStub(channel)
        self._key = key
        self._owner = owner
        self._heads = heads
        # One such call at a time, so that the heads in the answers come in the order they were signed.
        self._noting_heads = threading.Lock()

    def manifest(self, signed: pb.Signed) -> tuple[Manifest, bytes]:
        """Verify a manifest; returns it and its digest."""
        body = verified(self._key, MANIFEST, signed)
        return manifest_from_bytes(body), digest_of(body)

    def statement(self, signed: pb.Signed, manifest_digest: bytes) -> pb.ReleaseStatement:
        """Verify the statement of this manifest's round."""
        statement = verified_statement(self._key, signed)
        if statement.manifest_digest != manifest_digest:
            raise InvalidMessage("the release statement is that of another round")
        return statement

    def join(self, manifest_digest: bytes) -> aggregator_pb2.JoinRoundResponse:
        """Take part, or renew the lease.

        Raises InvalidMessage with the reason ROLLED_BACK where the aggregator's ledger is not the one
        that this owner saw before.
        """
        with self._noting_heads:
            request = self._request(manifest_digest)
            request.join = True
            with translated():
                answer: aggregator_pb2.JoinRoundResponse = self._intake.JoinRound(
                    request, timeout=CALL_SECONDS
                )
            self._heads.note(answer.ledger_head)
        if not answer.lease_seconds:
            raise InvalidMessage("the aggregator grants no lease")
        return answer

    def refusal(self, manifest_digest: bytes) -> "pb.Reason":
        """Why our update was refused in a round that has ended; unspecified where it was not, as far as is known.

        Raises Unavailable.
        """
        try:
            self.join(manifest_digest)
        except Unavailable:
            raise
        except CairnError as error:
            return error.reason if error.reason in DEPENDING_ON_DATA else pb.REASON_UNSPECIFIED
        return pb.REASON_UNSPECIFIED

    def decline(self, manifest_digest: bytes, reason: "pb.Reason", seconds: float) -> None:
        request = self._request(manifest_digest)
        request.reason = reason
        with translated():
            self._intake.JoinRound(request, timeout=seconds)

    def submit(
        self,
        header: aggregator_pb2.UpdateHeader,
        payload: memoryview,
        pushed: Pushed,
        seconds: float,
        before_commit: Callable[[], object] = lambda: None,
    ) -> pb.Signed:
        """Push an update; returns the receipt. May be repeated: the same update is counted once.

        Nothing of it counts before its commit, and that waits for `before_commit`.
        """
        seen = self._heads.seen()
        if seen is not None and not header.HasField("seen_head"):  # repeated, it is the same header
            header.seen_head.CopyFrom(seen)
        begun: SimpleQueue[grpc.Call] = SimpleQueue()

        def commit() -> aggregator_pb2.UpdateCommit:
            before_commit()
            return aggregator_pb2.UpdateCommit(payload_digest=pushed.payload_digest)

        parts = _parts(header, payload, commit, begun)
        with translated():
            if len(payload) <= CHUNK_BYTES:  # it goes along with the header: nothing is held back
                answer = self._intake.SubmitUpdate(parts, timeout=seconds)
            else:
                call = self._intake.SubmitUpdate.future(parts, timeout=seconds)
                begun.put(call)
                answer = call.result()
        return self._checked(answer.receipt, header.manifest_digest, [pushed])

    def receipt(self, manifest_digest: bytes, pushed: Sequence[Pushed]) -> pb.Signed | None:
        """Ask for the receipt of our own update, after a lost answer; None where it has none.

        `pushed` is what may have arrived, the latest last; a restarted aggregator looks for that one.
        """
        latest = pushed[-1]
        request = aggregator_pb2.GetReceiptRequest(
            manifest_digest=manifest_digest,
            payload_digest=latest.payload_digest,
            examples=latest.examples,
            metrics=latest.metrics,
            salt=latest.salt,
        )
        try:
            with translated():
                answer = self._intake.GetReceipt(request, timeout=CALL_SECONDS)
        except NotFound:
            return None
        return self._checked(answer.receipt, manifest_digest, pushed)

    def released(self, manifest_digest: bytes) -> pb.Signed | None:
        """Ask for the signed statement of a round, None where it is open, and keep the ledger's head.

        Shows the aggregator the last head this owner was given. Raises NotFound, with the reason
        ROUND_ENDED, where the round has ended without a release. Where the aggregator's ledger is not the
        one this owner saw before, the reason is ROLLED_BACK: of WrongState where the aggregator finds
        that out, of InvalidMessage where we do.
        """
        with self._noting_heads:
            request = aggregator_pb2.GetStatementRequest(
                manifest_digest=manifest_digest, seen_head=self._heads.seen()
            )
            with translated():
                answer = self._records.GetStatement(request, timeout=CALL_SECONDS)
            self._heads.note(answer.ledger_head)
        return answer.statement if answer.HasField("statement") else None

    def _request(self, manifest_digest: bytes) -> aggregator_pb2.JoinRoundRequest:
        return aggregator_pb2.JoinRoundRequest(
            manifest_digest=manifest_digest,
            seen_head=self._heads.seen(),
            protocol=PROTOCOL,
            software=__version__,
        )

    def _checked(
        self, signed: pb.Signed, manifest_digest: bytes, pushed: Sequence[Pushed]
    ) -> pb.Signed:
        """The receipt, where it is for one of these updates."""
        receipt = verified_receipt(self._key, signed)
        metrics = dict(receipt.metrics)
        said = Pushed(receipt.payload_digest, receipt.examples, metrics, receipt.salt)
        if (receipt.manifest_digest, receipt.owner) != (manifest_digest, self._owner):
            raise InvalidMessage("the receipt is another round's or another owner's")
        if said not in pushed:
            raise InvalidMessage("the receipt does not say what the pushed update said")
        return signed


def _parts(
    header: aggregator_pb2.UpdateHeader,
    payload: memoryview,
    commit: Callable[[], aggregator_pb2.UpdateCommit],
    begun: SimpleQueue[grpc.Call],
) -> Iterator[aggregator_pb2.SubmitUpdateRequest | memoryview]:
    yield aggregator_pb2.SubmitUpdateRequest(header=header)
    if len(payload) > CHUNK_BYTES:
        begun.get().initial_metadata()  # comes when it is our turn, or when the call ends
    yield from chunks_of(payload)
    failpoint("owner.push.partial")
    yield aggregator_pb2.SubmitUpdateRequest(commit=commit())
