"""One update as it arrives: counted byte by byte, and worth nothing before its commit."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.buffers import BufferPool
from aggregator_node.aggregation.exact_sum import BLOCK
from aggregator_node.aggregation.rule import ReadBlock
from aggregator_node.aggregation.weight_caps import LargestShare
from aggregator_node.aggregation.workspace import RoundSize
from cairn.errors import InvalidMessage, LimitExceeded, UpdateRefused
from cairn.model.schema import CHUNK_BYTES, Schema
from cairn.model.update_encoding import UpdateLayout, check_update, decoded
from cairn.model.validation import Bounds
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.limits import MAX_EXAMPLES, MAX_METRIC_NAME_BYTES, MAX_METRICS
from cairn.protocol.messages import JobSpec, Manifest, check_digest, digest_of, manifest_to_bytes
from cairn.protocol.statistics import check_counts
from cairn.runtime.timeouts import SHORT_WAIT_SECONDS
from cairn.transport.receiver import PayloadReceiver
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb

MIN_CHUNK_BYTES = 64 << 10  # of all but the last: a stream of single bytes would last for ever


@dataclass(frozen=True)
class RoundContext:
    """What an update must keep to.

    `draw_seed` is what the manifest commits to where the rule draws: in memory alone, until the release states it.
    """

    manifest: Manifest
    job: JobSpec
    bounds: Bounds
    draw_seed: bytes = field(default=b"", repr=False)

    @cached_property
    def body(self) -> bytes:
        """The manifest as it is signed."""
        return manifest_to_bytes(self.manifest)

    @cached_property
    def digest(self) -> bytes:
        """The manifest's, which names the round."""
        return digest_of(self.body)

    @property
    def ids(self) -> tuple[str, int]:
        """The job and the number of the round."""
        return self.manifest.job, self.manifest.round

    @cached_property
    def layout(self) -> UpdateLayout:
        """How an update lies on the wire."""
        return UpdateLayout(self.job.schema, self.manifest.encoding)

    @property
    def total_bytes(self) -> int:
        return self.layout.total_bytes if self.manifest.trains else 0

    @cached_property
    def share(self) -> LargestShare:
        return LargestShare(self.manifest.largest_share)

    @cached_property
    def most_held(self) -> int:
        """How many updates at a time may have to wait until it is known how much they count."""
        return self.share.most_capped if self.manifest.trains and self.may_be_capped else 0

    @cached_property
    def may_be_capped(self) -> bool:
        """Whether an update can count for less than its weight, because of the others' weights."""
        least, most = self.weight(1), self.weight(MAX_EXAMPLES)
        return self.share.may_cap(least, most, self.manifest.floor)

    @property
    def size(self) -> RoundSize:
        """What the round takes of memory. In an evaluation nothing is added: its sums are those of no tensor."""
        manifest, trains = self.manifest, self.manifest.trains
        return RoundSize(
            schema=self.job.schema if trains else Schema(()),
            update_bytes=self.total_bytes,
            cohort=len(manifest.cohort),
            held=self.most_held,
            aggregation=self.job.aggregation if trains else Aggregation(),
            floor=manifest.floor,
            are_deltas=self.are_deltas,
        )

    @property
    def are_deltas(self) -> bool:
        """Whether the updates are deltas from the round's base."""
        return self.manifest.encoding != pb.ENCODING_WHOLE

    @property
    def needs_base(self) -> bool:
        """Whether the aggregator needs the model that the round starts from."""
        return self.manifest.trains and (self.are_deltas or self.job.aggregation.needs_base)

    def weight(self, examples: int) -> int:
        """How much an update counts, unless its share is too large.

        Fewer or more examples than the job's bounds count as these. To refuse such an update would let a
        coordinator find out an owner's number by moving the bounds.
        """
        if self.job.weighting != pb.WEIGHTING_EXAMPLES:
            return 1
        return min(max(examples, self.job.min_examples), self.job.max_examples)


def check_header(header: aggregator_pb2.UpdateHeader, context: RoundContext) -> None:
    """Raise InvalidMessage or UpdateRefused for an update that cannot belong to the round."""
    if header.base_digest != context.manifest.base_digest:
        raise UpdateRefused(
            "the update was trained from another model than the round's base",
            pb.REASON_BASE_MISMATCH,
        )
    if header.total_bytes != context.total_bytes:
        raise InvalidMessage(
            f"the update declares {header.total_bytes} bytes, its layout has {context.total_bytes}"
        )
    if not 1 <= header.examples <= MAX_EXAMPLES:
        raise UpdateRefused(
            f"an update stands for 1 to {MAX_EXAMPLES} examples", pb.REASON_EXAMPLES_REFUSED
        )
    check_digest(header.salt, "salt")
    if len(header.metrics) > MAX_METRICS:
        raise InvalidMessage(f"an update has at most {MAX_METRICS} metrics")
    for name, value in header.metrics.items():
        if not 1 <= len(name.encode()) <= MAX_METRIC_NAME_BYTES:
            raise InvalidMessage(f"a metric's name has 1 to {MAX_METRIC_NAME_BYTES} bytes")
        if not math.isfinite(value):
            raise UpdateRefused("a metric is not finite", pb.REASON_NON_FINITE)


def check_chunk(length: int, missing: int, total: int) -> None:
    """Raise LimitExceeded for more bytes than are missing or a chunk has, InvalidMessage for too short a chunk."""
    if length > missing:
        raise LimitExceeded(f"more bytes than the {total} that were to come")
    if length < max(1, min(MIN_CHUNK_BYTES, missing)):
        raise InvalidMessage(
            f"a chunk of {length} bytes: every chunk but the last has at least {MIN_CHUNK_BYTES}"
        )
    if length > CHUNK_BYTES:
        raise LimitExceeded(f"a chunk has at most {CHUNK_BYTES} bytes")


class Call(Protocol):
    """What an upload needs of the call that brings it; `grpc.ServicerContext` has it."""

    def cancel(self) -> object: ...

    def is_active(self) -> bool: ...

    def add_callback(self, callback: Callable[[], None]) -> bool: ...


class Upload:
    """The stream of one update: counted, hashed, and kept in a buffer that it borrows."""

    def __init__(
        self, header: aggregator_pb2.UpdateHeader, context: RoundContext, call: Call
    ) -> None:
        """Prepare for the bytes that `header` declares and `check_header` has checked."""
        self.header = header
        self.call = call
        self.payload: memoryview | None = None
        self.heard_at = -math.inf  # when it brought something, on the monotonic clock
        self.turn_ends = math.inf  # on the monotonic clock, where others wait for their turn
        self._context = context
        self._incoming = self._expected(None)

    def keep_in(self, buffer: memoryview, turn_ends: float) -> None:
        """Keep what comes. Without a buffer it is only compared with what was accepted before."""
        self.payload = buffer
        self.turn_ends = turn_ends
        self._incoming = self._expected(buffer)

    def check_turn(self, now: float, buffers: BufferPool) -> None:
        """Raise LimitExceeded where the owner has had its turn, and others wait in line.

        Else a few owners who send as slowly as they may would keep the memory to the round's end.
        """
        if now >= self.turn_ends and buffers.are_waited_for:
            raise LimitExceeded(
                "this push took longer than its share of the round, and others wait in line"
            )

    def write(self, chunk: memoryview) -> None:
        """Take the next bytes. Raises LimitExceeded beyond the declared size."""
        check_chunk(len(chunk), self._incoming.missing, self._incoming.total)
        self._incoming.write(chunk)

    def finish(self, commit: aggregator_pb2.UpdateCommit) -> bytes:
        """Check the whole update against its commit and return its digest.

        Raises UpdateRefused with CORRUPT_UPDATE where bytes are missing or wrong, and with NON_FINITE
        or MAGNITUDE_REFUSED where a value is not to be added, and with WRONG_TENSORS where counts do not agree with each
        other: before any arithmetic.
        """
        if self._incoming.missing:
            raise UpdateRefused(
                f"the update ends after {self._incoming.offset} of {self._incoming.total} bytes",
                pb.REASON_CORRUPT_UPDATE,
            )
        if not self._context.manifest.trains:
            if commit.payload_digest:
                raise InvalidMessage("an evaluation carries no payload digest")
            return b""
        check_digest(commit.payload_digest, "payload_digest")
        if self._incoming.digest() != commit.payload_digest:
            raise UpdateRefused(
                "the bytes that arrived do not have the committed digest", pb.REASON_CORRUPT_UPDATE
            )
        if self.payload is not None:
            check_update(self._context.layout, self.payload, self._context.bounds)
            if (statistics := self._context.job.statistics) is not None:
                check_counts(statistics, self.payload, self.header.examples)
        return commit.payload_digest

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics that count: none beside a private model, to which noise would have to be added as well."""
        is_private = self._context.job.aggregation.is_private
        return {} if is_private else dict(self.header.metrics)

    def header_digest(self) -> bytes:
        """What makes two headers those of one update: all but how far the owner knows the ledger."""
        same = aggregator_pb2.UpdateHeader()
        same.CopyFrom(self.header)
        same.ClearField("seen_head")
        return digest_of(same.SerializeToString(deterministic=True))

    @property
    def kept(self) -> memoryview:
        """The buffer of an update that is kept."""
        if self.payload is None:
            raise AssertionError("an update that is not kept cannot be added")
        return self.payload

    def reading(self) -> ReadBlock:
        """Reads the update that is kept, block by block."""
        layout, payload, scratch = self._context.layout, self.kept, np.empty(BLOCK)

        def read(number: int, block: slice) -> tuple[NDArray[Any], int]:
            part = layout.segments[number]
            return decoded(part, payload, block, scratch), part.significant_bits

        return read

    def _expected(self, buffer: memoryview | None) -> PayloadReceiver:
        return PayloadReceiver(self.header.total_bytes, self._context.layout.hasher(), buffer)


class Uploads:
    """The uploads under way in one round: one of an owner at a time.

    The round holds its lock around every call. Times are seconds of a monotonic clock.
    """

    def __init__(self) -> None:
        self._of: dict[str, Upload] = {}

    def check_free(self, owner: str, now: float) -> None:
        """Raise LimitExceeded while the owner has an upload under way.

        One that has brought nothing for a moment is ended. Whoever pushes anew has given it up, and where a
        connection is gone and only the owner was told, nothing else would end it for a while.
        """
        before = self._of.get(owner)
        if before is None:
            return
        if now - before.heard_at >= SHORT_WAIT_SECONDS:
            before.call.cancel()
        raise LimitExceeded("another push of this owner is under way")

    def begin(self, owner: str, upload: Upload, now: float) -> None:
        self.check_free(owner, now)
        upload.heard_at = now
        self._of[owner] = upload

    def end(self, owner: str, upload: Upload) -> None:
        """The upload is over, or complete; may be said twice."""
        if self._of.get(owner) is upload:
            del self._of[owner]

    def cancel_all(self) -> None:
        for upload in self._of.values():
            upload.call.cancel()
