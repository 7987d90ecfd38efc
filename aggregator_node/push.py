"""One update as it arrives: counted byte by byte, and worth nothing before its commit."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from cairn.errors import InvalidMessage, TooMuch, UpdateRefused
from cairn.limits import MAX_EXAMPLES, MAX_METRIC_NAME_BYTES, MAX_METRICS
from cairn.messages import JobSpec, Manifest, check_digest
from cairn.tensors import CHUNK_BYTES
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from cairn.values import Bounds, check_values

MIN_CHUNK_BYTES = 64 << 10  # of all but the last: a stream of single bytes would last for ever


@dataclass(frozen=True)
class Terms:
    """What an update must keep to."""

    manifest: Manifest
    job: JobSpec
    bounds: Bounds

    @property
    def total_bytes(self) -> int:
        return self.job.schema.total_bytes if self.manifest.trains else 0

    def weight(self, examples: int) -> int:
        """How much an update counts.

        Fewer or more examples than the job's bounds count as these. To refuse such an update would let a
        coordinator find out an owner's number by moving the bounds.
        """
        if self.job.weighting != pb.WEIGHTING_EXAMPLES:
            return 1
        return min(max(examples, self.job.min_examples), self.job.max_examples)


def check_header(header: aggregator_pb2.UpdateHeader, terms: Terms) -> None:
    """Raise InvalidMessage or UpdateRefused for an update that cannot belong to the round."""
    if header.base_digest != terms.manifest.base_digest:
        raise UpdateRefused(
            "the update was trained from another model than the round's base",
            pb.REASON_BASE_MISMATCH,
        )
    if header.total_bytes != terms.total_bytes:
        raise InvalidMessage(
            f"the update declares {header.total_bytes} bytes, the schema has {terms.total_bytes}"
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
        terms: Terms,
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
        self._terms = terms
        self._hasher = terms.job.schema.hasher()
        self._offset = 0

    def write(self, chunk: bytes, now: float) -> None:
        """Take the next bytes. Raises TooMuch beyond the declared size."""
        end = self._offset + len(chunk)
        if end > len(self.payload):
            raise TooMuch(f"more bytes than the {len(self.payload)} that the header declares")
        if len(chunk) < max(1, min(MIN_CHUNK_BYTES, len(self.payload) - self._offset)):
            raise InvalidMessage(
                f"a chunk of {len(chunk)} bytes: every chunk but the last has at least {MIN_CHUNK_BYTES}"
            )
        if len(chunk) > CHUNK_BYTES:
            raise TooMuch(f"a chunk has at most {CHUNK_BYTES} bytes")
        self.payload[self._offset : end] = chunk
        self._hasher.update(chunk)
        self._offset = end
        self.heard_at = now

    def finish(self, commit: aggregator_pb2.UpdateCommit) -> bytes:
        """Check the whole update against its commit and return its digest.

        Raises UpdateRefused with CORRUPT_UPDATE where bytes are missing or wrong, and with NON_FINITE
        or MAGNITUDE_REFUSED where a value is not to be added: before any arithmetic.
        """
        if self._offset != len(self.payload):
            raise UpdateRefused(
                f"the update ends after {self._offset} of {len(self.payload)} bytes",
                pb.REASON_CORRUPT_UPDATE,
            )
        if not self._terms.manifest.trains:
            if commit.payload_digest:
                raise InvalidMessage("an evaluation carries no payload digest")
            return b""
        check_digest(commit.payload_digest, "payload_digest")
        if self._hasher.digest() != commit.payload_digest:
            raise UpdateRefused(
                "the bytes that arrived do not have the committed digest", pb.REASON_CORRUPT_UPDATE
            )
        check_values(self._terms.job.schema, self.payload, self._terms.bounds)
        return commit.payload_digest
