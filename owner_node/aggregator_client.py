"""The owner's calls to the aggregator. Makes `cairn.v1.IntakeService`'s."""

from collections.abc import Iterator

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cairn.errors import InvalidMessage, NotFound
from cairn.messages import Manifest, digest_of, manifest_from_bytes
from cairn.rpc import CALL_SECONDS, translated
from cairn.statements import (
    MANIFEST,
    verified,
    verified_receipt,
    verified_statement,
)
from cairn.tensors import CHUNK_BYTES
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc
from cairn.v1 import round_pb2 as pb


class AggregatorClient:
    """Speaks to the one aggregator whose certificate and signing key this owner has pinned."""

    def __init__(self, channel: grpc.Channel, key: Ed25519PublicKey, owner: str) -> None:
        self._stub = aggregator_pb2_grpc.IntakeServiceStub(channel)
        self._key = key
        self._owner = owner

    def manifest(self, signed: pb.Signed) -> tuple[Manifest, bytes]:
        """Verify a manifest; returns it and its digest."""
        body = verified(self._key, MANIFEST, signed)
        return manifest_from_bytes(body), digest_of(body)

    def statement(self, signed: pb.Signed) -> pb.ReleaseStatement:
        return verified_statement(self._key, signed)

    def join(self, manifest_digest: bytes) -> aggregator_pb2.JoinRoundResponse:
        """Take part, or renew the lease."""
        request = aggregator_pb2.JoinRoundRequest(manifest_digest=manifest_digest, join=True)
        with translated():
            answer: aggregator_pb2.JoinRoundResponse = self._stub.JoinRound(
                request, timeout=CALL_SECONDS
            )
        if not answer.lease_seconds:
            raise InvalidMessage("the aggregator grants no lease")
        return answer

    def decline(self, manifest_digest: bytes, reason: "pb.Reason", seconds: float) -> None:
        request = aggregator_pb2.JoinRoundRequest(
            manifest_digest=manifest_digest, join=False, reason=reason
        )
        with translated():
            self._stub.JoinRound(request, timeout=seconds)

    def submit(
        self,
        header: aggregator_pb2.UpdateHeader,
        payload: memoryview,
        payload_digest: bytes,
        seconds: float,
    ) -> aggregator_pb2.Receipt:
        """Push an update. May be repeated: the same update is counted once."""
        with translated():
            answer = self._stub.SubmitUpdate(
                _parts(header, payload, payload_digest), timeout=seconds
            )
        return self._checked(answer.receipt, header.manifest_digest, payload_digest)

    def receipt(
        self, manifest_digest: bytes, payload_digest: bytes
    ) -> aggregator_pb2.Receipt | None:
        """Ask for the receipt of our own update, after a lost answer; None where it has none."""
        request = aggregator_pb2.GetReceiptRequest(manifest_digest=manifest_digest)
        try:
            with translated():
                answer = self._stub.GetReceipt(request, timeout=CALL_SECONDS)
        except NotFound:
            return None
        return self._checked(answer.receipt, manifest_digest, payload_digest)

    def _checked(
        self, signed: pb.Signed, manifest_digest: bytes, payload_digest: bytes
    ) -> aggregator_pb2.Receipt:
        receipt = verified_receipt(self._key, signed)
        got = (receipt.manifest_digest, receipt.owner, receipt.payload_digest)
        if got != (manifest_digest, self._owner, payload_digest):
            raise InvalidMessage("the receipt is not that of the pushed update")
        return receipt


def _parts(
    header: aggregator_pb2.UpdateHeader, payload: memoryview, payload_digest: bytes
) -> Iterator[aggregator_pb2.SubmitUpdateRequest]:
    yield aggregator_pb2.SubmitUpdateRequest(header=header)
    for begin in range(0, len(payload), CHUNK_BYTES):
        chunk = bytes(payload[begin : begin + CHUNK_BYTES])
        yield aggregator_pb2.SubmitUpdateRequest(chunk=chunk)
    commit = aggregator_pb2.UpdateCommit(payload_digest=payload_digest)
    yield aggregator_pb2.SubmitUpdateRequest(commit=commit)
