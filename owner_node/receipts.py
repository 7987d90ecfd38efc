"""Keeps the aggregator's receipts for this owner's updates, and fetches those whose answer was lost."""

import base64

from cairn.errors import CairnError, Unavailable
from cairn.v1 import round_pb2 as pb
from owner_node import events
from owner_node.aggregator_client import AggregatorClient
from owner_node.events import Observer
from owner_node.records.ledger import NotRecorded, OwnerLedger


class Receipts:
    """The receipts in the ledger."""

    def __init__(self, aggregator: AggregatorClient, ledger: OwnerLedger, tell: Observer) -> None:
        self._aggregator = aggregator
        self._ledger = ledger
        self._tell = tell

    def keep(self, manifest_digest: bytes, receipt: pb.Signed) -> None:
        """Record a receipt. Never raises: what it is for has left already."""
        text = base64.b64encode(receipt.SerializeToString()).decode()
        try:
            self._ledger.record(
                "receipt", {"manifest_digest": manifest_digest.hex(), "receipt": text}
            )
        except NotRecorded as error:
            self._tell(events.ReceiptNotKept(error))

    def find(self, manifest_digest: bytes) -> pb.Signed | None:
        """The receipt for what this owner pushed in a round, if there is one.

        Raises Unavailable where the aggregator could not be asked.
        """
        past = self._ledger.past
        pushed = past.sent(manifest_digest)
        if not pushed or past.receipt(manifest_digest) is not None:
            return past.receipt(manifest_digest)
        try:
            receipt = self._aggregator.receipt(manifest_digest, pushed)
        except Unavailable:
            raise
        except CairnError as error:
            self._tell(events.ReceiptRefused(error))
            return None
        if receipt is not None:
            self.keep(manifest_digest, receipt)
        return receipt
