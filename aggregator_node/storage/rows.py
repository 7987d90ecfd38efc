"""What the aggregator's database keeps of a job and of a round.

A job's specification is read once, and no two at the same time: a large one takes half a second. A few are kept,
up to a number of bytes: one of 16 MiB is a million objects, which Python's collector looks through again and
again while everybody waits.
"""

import json
import threading
from dataclasses import dataclass, replace
from typing import Any

from cairn.protocol.limits import MAX_JOB_SPEC_BYTES
from cairn.protocol.messages import JobSpec, job_spec_from_bytes
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb

_KEPT = 8
_KEPT_BYTES = MAX_JOB_SPEC_BYTES  # of all that are kept; the last one always is
_reading = threading.Lock()
_kept: dict[bytes, JobSpec] = {}  # the last used at the end


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


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    `opened` is the number of the last training round that was opened, in whatever way it ended;
    `released` counts the releases with a model; `release_round` and `release_digest` name the last of
    them; `evaluated` is the number of the last round whose evaluation was opened; `aborts` is how
    many rounds since the last release its coordinator ended, also by bringing another model for one.
    """

    opened: int = 0
    released: int = 0
    release_round: int = 0
    release_digest: bytes = b""
    evaluated: int = 0
    aborts: int = 0


def spec_of(body: bytes) -> JobSpec:
    """The job that these bytes specify; raises as `job_spec_from_bytes` does.

    Call it with no other lock held: the owners' calls must not wait for it.
    """
    with _reading:
        spec = _kept.pop(body, None) or job_spec_from_bytes(body)
        _kept[body] = spec
        while len(_kept) > _KEPT or (len(_kept) > 1 and sum(map(len, _kept)) > _KEPT_BYTES):
            del _kept[next(iter(_kept))]
        return spec
