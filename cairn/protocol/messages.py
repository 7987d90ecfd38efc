"""Between the wire's messages and the values the code works with: both directions, side by side.

Nothing arrives unchecked: a missing field, an unknown enum value or a number out of range raises
InvalidMessage, and never becomes a default.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from cairn import __version__
from cairn.errors import InvalidMessage, LimitExceeded
from cairn.model.schema import DIGEST_BYTES, FLOATS, MAX_TENSORS, Schema, TensorSpec
from cairn.protocol.aggregation import (
    Aggregation,
    aggregation_from_pb,
    aggregation_to_pb,
    check_aggregation,
)
from cairn.protocol.cohorts import Groups, check_groups, check_name, check_owners
from cairn.protocol.limits import (
    LARGEST_SHARE,
    MAX_COHORT,
    MAX_EXAMPLES,
    MAX_JOB_SPEC_BYTES,
    MAX_ROUND_SECONDS,
    MIN_COHORT,
)
from cairn.protocol.statistics import Statistics, schema_of, statistics_from_pb, statistics_to_pb
from cairn.protocol.words import known
from cairn.v1 import round_pb2 as pb

PROTOCOL = 5

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class JobSpec:
    """One training run; the fields are those of the message of the same name."""

    federation: str
    name: str
    task: str
    settings: Mapping[str, float]
    owners: tuple[str, ...]
    floor: int
    rounds: int
    weighting: "pb.Weighting"
    schema: Schema
    round_deadline_seconds: int
    min_examples: int
    max_examples: int
    encoding: "pb.Encoding" = pb.ENCODING_WHOLE
    groups: Groups = ()
    aggregation: Aggregation = field(default_factory=Aggregation)
    statistics: Statistics | None = None


@dataclass(frozen=True)
class Manifest:
    """The opening of a round; the fields are those of RoundManifest."""

    federation: str
    job: str
    job_digest: bytes
    round: int
    phase: "pb.Phase"
    cohort: tuple[str, ...]
    base_digest: bytes
    previous_release_digest: bytes
    weighting: "pb.Weighting"
    floor: int
    deadline_unix_ms: int
    lease_seconds: int
    nonce: bytes
    ledger_head: bytes
    ledger_number: int
    encoding: "pb.Encoding" = pb.ENCODING_WHOLE
    largest_share: float = LARGEST_SHARE
    aggregation: Aggregation = field(default_factory=Aggregation)
    draw_commitment: bytes = b""

    @property
    def trains(self) -> bool:
        """Whether the updates carry tensors."""
        return self.phase == pb.PHASE_TRAIN

    @property
    def draws(self) -> bool:
        """Whether the updates are combined by a draw."""
        return self.trains and self.aggregation.draws

    def __str__(self) -> str:
        return f"{self.job} round {self.round}" + ("" if self.trains else " (evaluation)")


def digest_of(body: bytes) -> bytes:
    """The SHA-256 under which signed or registered bytes are named."""
    return sha256(body).digest()


def parse(kind: type[M], body: bytes) -> M:
    """Parse a message's bytes; raises InvalidMessage where they are none."""
    try:
        return kind.FromString(body)
    except DecodeError:
        raise InvalidMessage(f"the bytes are not a {kind.DESCRIPTOR.full_name}") from None


def schema_to_pb(schema: Schema) -> pb.ModelSchema:
    return pb.ModelSchema(
        tensors=[
            pb.TensorSpec(name=tensor.name, dtype=f"DTYPE_{tensor.dtype}", shape=tensor.shape)
            for tensor in schema.tensors
        ]
    )


def schema_from_pb(message: pb.ModelSchema) -> Schema:
    if len(message.tensors) > MAX_TENSORS:  # before each of them becomes an object
        raise InvalidMessage(f"a model has 1 to {MAX_TENSORS} tensors")
    schema = Schema.of(
        TensorSpec(
            tensor.name,
            known(pb.Dtype, tensor.dtype, "dtype").removeprefix("DTYPE_"),
            tuple(tensor.shape),
        )
        for tensor in message.tensors
    )
    if [tensor.name for tensor in schema.tensors] != [tensor.name for tensor in message.tensors]:
        raise InvalidMessage("the tensors of the schema are not in canonical order")
    return schema


def job_spec_to_bytes(spec: JobSpec) -> bytes:
    groups = [pb.Group(owners=group) for group in spec.groups]
    fields = vars(spec) | {
        "schema": schema_to_pb(spec.schema),
        "groups": groups,
        "aggregation": aggregation_to_pb(spec.aggregation),
        "statistics": None if spec.statistics is None else statistics_to_pb(spec.statistics),
    }
    message = pb.JobSpec(**fields, chain=pb.CHAIN_STRICT)
    return message.SerializeToString(deterministic=True)


def job_spec_from_bytes(body: bytes) -> JobSpec:
    if len(body) > MAX_JOB_SPEC_BYTES:
        raise LimitExceeded(
            f"the job's specification has {len(body)} bytes, most of them the names of its tensors; it"
            f" has {MAX_JOB_SPEC_BYTES} at the most"
        )
    message = parse(pb.JobSpec, body)
    check_enums(message, "chain", "weighting", "encoding")
    check_name(message.federation, "federation")
    check_name(message.name, "job")
    check_name(message.task, "task")
    for key in message.settings:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", key):
            raise InvalidMessage("a setting's name is not a plain word of at most 64 letters")
    owners = check_owners(message.owners)
    if not MIN_COHORT <= message.floor <= len(owners):
        raise InvalidMessage(
            f"the job's floor is {message.floor}; it must be at least {MIN_COHORT}, because an"
            f" average of one is that one's update, and at most its {len(owners)} owners",
            pb.REASON_COHORT_TOO_SMALL,
        )
    least = within(message.min_examples, 1, MAX_EXAMPLES, "min_examples")
    spec = JobSpec(
        federation=message.federation,
        name=message.name,
        task=message.task,
        settings=dict(message.settings),
        owners=owners,
        floor=message.floor,
        rounds=within(message.rounds, 1, 1_000_000, "rounds"),
        weighting=message.weighting,
        schema=schema_from_pb(message.schema),
        round_deadline_seconds=within(
            message.round_deadline_seconds, 1, MAX_ROUND_SECONDS, "round_deadline_seconds"
        ),
        min_examples=least,
        max_examples=within(message.max_examples, least, MAX_EXAMPLES, "max_examples"),
        encoding=message.encoding,
        groups=check_groups([group.owners for group in message.groups], owners, message.floor),
        aggregation=aggregation_from_pb(message.aggregation),
        statistics=statistics_from_pb(message.statistics)
        if message.HasField("statistics")
        else None,
    )
    _check_parts(spec)
    _check_statistics(spec)
    return spec


def _check_parts(spec: JobSpec) -> None:
    all_floats = all(tensor.dtype in FLOATS for tensor in spec.schema.tensors)
    try:
        check_aggregation(spec.aggregation, spec.weighting, spec.encoding, all_floats=all_floats)
    except ValueError as error:
        raise InvalidMessage(str(error), pb.REASON_RULE_REFUSED) from None


def _check_statistics(spec: JobSpec) -> None:
    statistics = spec.statistics
    if (statistics is not None) != spec.aggregation.are_statistics:
        raise InvalidMessage("a job of statistics says what is counted, and no other job does")
    if statistics is None:
        return
    if spec.rounds != 1 or spec.groups or spec.settings:
        raise InvalidMessage("a job of statistics has one round, no groups and no settings")
    if spec.schema != schema_of(statistics):
        raise InvalidMessage("the schema of a job of statistics is not that of its columns")


def manifest_to_bytes(manifest: Manifest) -> bytes:
    fields = vars(manifest) | {"aggregation": aggregation_to_pb(manifest.aggregation)}
    message = pb.RoundManifest(**fields, protocol=PROTOCOL, software=__version__)
    return message.SerializeToString(deterministic=True)


def manifest_from_bytes(body: bytes) -> Manifest:
    message = parse(pb.RoundManifest, body)
    # First: another version may differ in all else.
    check_protocol(message.protocol, message.software)
    check_enums(message, "phase", "weighting", "encoding")
    check_name(message.federation, "federation")
    check_name(message.job, "job")
    if message.previous_release_digest:
        check_digest(message.previous_release_digest, "previous_release_digest")
    manifest = Manifest(
        federation=message.federation,
        job=message.job,
        job_digest=check_digest(message.job_digest, "job_digest"),
        round=within(message.round, 1, 1 << 31, "round"),
        phase=message.phase,
        cohort=check_owners(message.cohort),
        base_digest=check_digest(message.base_digest, "base_digest"),
        previous_release_digest=message.previous_release_digest,
        weighting=message.weighting,
        floor=within(message.floor, MIN_COHORT, MAX_COHORT, "floor"),
        deadline_unix_ms=within(message.deadline_unix_ms, 1, 1 << 62, "deadline_unix_ms"),
        lease_seconds=within(message.lease_seconds, 1, MAX_ROUND_SECONDS, "lease_seconds"),
        nonce=check_digest(message.nonce, "nonce"),
        ledger_head=check_digest(message.ledger_head, "ledger_head"),
        ledger_number=message.ledger_number,
        encoding=message.encoding,
        largest_share=_share(message.largest_share),
        aggregation=aggregation_from_pb(message.aggregation),
        draw_commitment=message.draw_commitment,
    )
    check_draw(message.draw_commitment, "draw_commitment", draws=manifest.draws)
    return manifest


def check_draw(value: bytes, field: str, *, draws: bool) -> None:
    """Raise InvalidMessage where a round by draw lacks what it is drawn by, or another round has such a thing."""
    expected = DIGEST_BYTES if draws else 0
    if len(value) != expected:
        raise InvalidMessage(f"{field} has {len(value)} bytes instead of {expected}")


def _share(value: float) -> float:
    if not 0 < value <= LARGEST_SHARE:  # also refuses NaN
        raise InvalidMessage(f"largest_share is {value}; it must be above 0 and at most 0.5")
    return value


def check_protocol(theirs: int, software: str) -> None:
    """Raise InvalidMessage, which names both versions, where the peer speaks another protocol."""
    if theirs != PROTOCOL:
        raise InvalidMessage(
            f"this node is Cairn {__version__}, which speaks version {PROTOCOL} of the protocol; the"
            f" peer is Cairn {software[:40] or '(no version given)'}, which speaks version {theirs}:"
            " install the same release of Cairn on both",
            pb.REASON_OTHER_VERSION,
        )


def check_digest(value: bytes, field: str) -> bytes:
    if len(value) != DIGEST_BYTES:
        raise InvalidMessage(f"{field} has {len(value)} bytes instead of {DIGEST_BYTES}")
    return value


def check_enums(message: Message, *fields: str) -> None:
    """Raise InvalidMessage where one of these fields of a message has no value that this version knows."""
    for name in fields:
        known(getattr(pb, name.capitalize()), getattr(message, name), name)


def within(value: int, low: int, high: int, field: str) -> int:
    if not low <= value <= high:
        raise InvalidMessage(f"{field} is {value}; it must be {low} to {high}")
    return value
