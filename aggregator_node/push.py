"""One update as it arrives: counted byte by byte, and worth nothing before its commit."""

import math
from collections.abc import Callable

from aggregator_node.averaging import check_values
from cairn.errors import InvalidMessage, TooMuch, UpdateRefused
from cairn.limits import MAX_EXAMPLES, MAX_METRIC_NAME_BYTES, MAX_METRICS
from cairn.messages import (
    Manifest,
    check_digest,
)
from cairn.tensors import Schema
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb


def check_header(header: aggregator_pb2.UpdateHeader, manifest: Manifest, schema: Schema) -> None:
    """Raise InvalidMessage or UpdateRefused for an update that cannot belong to the round."""
    if header.base_digest != manifest.base_digest:
        raise UpdateRefused(
            "the update was trained from another model than the round's base",
            pb.REASON_BASE_MISMATCH,
        )
    expected = schema.total_bytes if manifest.trains else 0
    if header.total_bytes != expected:
        raise InvalidMessage(
            f"the update declares {header.total_bytes} bytes, the schema has {expected}"
        )
    if not 1 <= header.examples <= MAX_EXAMPLES:
        raise UpdateRefused(
            f"an update stands for 1 to {MAX_EXAMPLES} examples", pb.REASON_EXAMPLES_REFUSED
        )
    if len(header.metrics) > MAX_METRICS:
        raise InvalidMessage(f"an update has at most {MAX_METRICS} metrics")
    for name, value in header.metrics.items():
        if not 1 <= len(name.encode()) <= MAX_METRIC_NAME_BYTES:
            raise InvalidMessage(f"a metric's name has 1 to {MAX_METRIC_NAME_BYTES} bytes")
        if not math.isfinite(value):
            raise UpdateRefused("a metric is not finite", pb.REASON_NON_FINITE)


class Push:
    """The stream of one update: its buffer, allocated once from the schema, and its digest."""

    def __init__(
        self,
        header: aggregator_pb2.UpdateHeader,
        schema: Schema,
        cancel: Callable[[], object],
        now: float,
    ) -> None:
        """Prepare for the bytes that `header` declares and `check_header` has checked."""
        self.header = header
        self.cancel = cancel
        self.heard_at = now
        try:
            self.payload = bytearray(header.total_bytes)
        except MemoryError:
            raise TooMuch("the aggregator has no memory for an update of this size") from None
        self._schema = schema
        self._hasher = schema.hasher()
        self._offset = 0

    def write(self, chunk: bytes, now: float) -> None:
        """Take the next bytes. Raises TooMuch beyond the declared size."""
        end = self._offset + len(chunk)
        if end > len(self.payload):
            raise TooMuch(f"more bytes than the {len(self.payload)} that the header declares")
        if not chunk:
            raise InvalidMessage("an empty chunk")
        self.payload[self._offset : end] = chunk
        self._hasher.update(chunk)
        self._offset = end
        self.heard_at = now

    def finish(self, commit: aggregator_pb2.UpdateCommit, *, trains: bool) -> bytes:
        """Check the whole update against its commit and return its digest.

        Raises UpdateRefused with CORRUPT_UPDATE where bytes are missing or wrong, and with NON_FINITE
        where a value is: before any arithmetic.
        """
        if self._offset != len(self.payload):
            raise UpdateRefused(
                f"the update ends after {self._offset} of {len(self.payload)} bytes",
                pb.REASON_CORRUPT_UPDATE,
            )
        if not trains:
            if commit.payload_digest:
                raise InvalidMessage("an evaluation carries no payload digest")
            return b""
        check_digest(commit.payload_digest, "payload_digest")
        if self._hasher.digest() != commit.payload_digest:
            raise UpdateRefused(
                "the bytes that arrived do not have the committed digest", pb.REASON_CORRUPT_UPDATE
            )
        check_values(self._schema, self.payload)
        return commit.payload_digest
