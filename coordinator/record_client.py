"""The coordinator's questions about the aggregator's ledger. Makes `cairn.v1.RecordService`'s calls."""

import threading
from dataclasses import dataclass

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cairn.ledger.chain import Entry
from cairn.protocol.statements import verified_head
from cairn.runtime.timeouts import CALL_SECONDS
from cairn.transport.retry import retry_while_unavailable
from cairn.transport.status import translated
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc
from cairn.v1 import round_pb2 as pb

_PAGE = 1000  # the most that the contract allows


@dataclass(frozen=True)
class Page:
    """Entries as they came, and the verified head of the whole ledger, with its signed form."""

    entries: tuple[Entry, ...]
    head: pb.LedgerHead
    signed_head: pb.Signed


class RecordClient:
    """Reads one aggregator's ledger. Waits for it as patiently as the settings say."""

    def __init__(
        self,
        channel: grpc.Channel,
        address: str,
        key: Ed25519PublicKey,
        patience_seconds: float,
        stopping: threading.Event,
    ) -> None:
        self._stub = aggregator_pb2_grpc.RecordServiceStub(channel)
        self._peer = f"the aggregator at {address}"
        self._key = key
        self._patience_seconds = patience_seconds
        self._stopping = stopping

    def entries(self, first: int) -> Page:
        """The entries from number `first` on, as many as one answer holds."""
        request = aggregator_pb2.ListEntriesRequest(first=first, limit=_PAGE)

        def ask() -> aggregator_pb2.ListEntriesResponse:
            with translated():
                answer: aggregator_pb2.ListEntriesResponse = self._stub.ListEntries(
                    request, timeout=CALL_SECONDS
                )
            return answer

        answer = retry_while_unavailable(ask, self._peer, self._patience_seconds, self._stopping)
        entries = tuple(Entry(e.number, e.kind, e.body, e.head) for e in answer.entries)
        return Page(entries, verified_head(self._key, answer.head), answer.head)
