"""What the aggregator's database keeps of a job and of a round."""

import json
from dataclasses import dataclass, replace
from typing import Any

from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb


@dataclass(frozen=True)
class JobRow:
    name: str
    coordinator: str
    spec: bytes


@dataclass(frozen=True)
class RoundRow:
    """How a round stands or ended. `manifest` and `statement` are serialised `Signed` messages."""

    manifest_digest: bytes
    job: str
    number: int
    phase: "pb.Phase"
    manifest: bytes
    state: "aggregator_pb2.RoundState" = aggregator_pb2.ROUND_STATE_OPEN
    reason: "pb.Reason" = pb.REASON_UNSPECIFIED
    exclusions: tuple[tuple[str, "pb.Reason"], ...] = ()
    statement: bytes | None = None
    release_digest: bytes | None = None

    @classmethod
    def of(cls, values: tuple[Any, ...]) -> "RoundRow":
        """A row as the database has it."""
        row = cls(*values)
        exclusions = tuple((owner, reason) for owner, reason in json.loads(values[7]))
        return replace(row, exclusions=exclusions)
