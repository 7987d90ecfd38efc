"""Collects one release from the aggregator into a file: verified, and going on where it broke off."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cairn.errors import InvalidMessage, Unavailable
from cairn.model.safetensors_writer import ModelWriter
from cairn.model.schema import Schema
from cairn.protocol.limits import MAX_ROUND_SECONDS
from cairn.protocol.statements import verified_statement
from cairn.runtime.failpoints import failpoint
from cairn.transport.idle_timeout import cancel_when_idle
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb


@dataclass(frozen=True)
class Release:
    """A verified release. `model` is whole and not kept yet; None for an evaluation."""

    statement: pb.ReleaseStatement
    signed: pb.Signed
    model: ModelWriter | None


class ReleaseDownload:
    """One release on its way. `begin` begins the file of its model."""

    def __init__(
        self,
        stub: Any,
        key: Ed25519PublicKey,
        request: aggregator_pb2.CollectReleaseRequest,
        schema: Schema,
        begin: Callable[[Schema], ModelWriter],
    ) -> None:
        self._stub = stub
        self._key = key
        self._request = request
        self._schema = schema
        self._begin = begin
        self._model: ModelWriter | None = None

    def fetch(self) -> Release:
        """Go on, to the end. Raises Unavailable where it breaks off, to be called again."""
        self._request.offset = self._model.written if self._model else 0
        # Silence ends it.
        parts = self._stub.CollectRelease(self._request, timeout=MAX_ROUND_SECONDS)
        with cancel_when_idle(parts.cancel) as heard:
            signed = self._statement(next(parts, None))
            statement = verified_statement(self._key, signed)
            if statement.manifest_digest != self._request.manifest_digest:
                raise InvalidMessage("the statement is that of another round")
            if statement.phase == pb.PHASE_TRAIN:
                self._model = self._model or self._begin(self._schema)
            for part in parts:
                if not isinstance(part, memoryview) or not part or self._model is None:
                    raise InvalidMessage("the release has other bytes than the schema")
                self._model.write(part)
                heard()
                failpoint("coordinator.collect.partial")
        return Release(statement, signed, self._checked(statement.release_digest))

    def discard(self) -> None:
        """Leave nothing behind of a release that is not kept."""
        if self._model is not None:
            self._model.discard()
            self._model = None

    def _statement(self, first: Any) -> pb.Signed:
        if isinstance(first, memoryview) or not (first and first.HasField("header")):
            raise InvalidMessage("the release does not begin with its header")
        signed: pb.Signed = first.header.statement
        return signed

    def _checked(self, release_digest: bytes) -> ModelWriter | None:
        if self._model is None:
            return None
        if self._model.missing:
            raise Unavailable("the release arrived incomplete")
        if self._model.digest() != release_digest:
            self.discard()  # to begin anew
            raise Unavailable("the release arrived damaged")
        return self._model
