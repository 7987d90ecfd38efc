"""What a round hands on: the answer to a join, an accepted update, what is to be released."""

from dataclasses import dataclass

from aggregator_node.aggregation.rule import Rule
from cairn.v1 import round_pb2 as pb


@dataclass(frozen=True)
class Accepted:
    """What is kept of an accepted update beside its share in the sum."""

    header_digest: bytes
    payload_digest: bytes
    receipt: pb.Signed


@dataclass(frozen=True)
class Joined:
    """The answer to a join: whether there is anything left to do, for how long at the most, and the
    place in line to push, 0 where it does not wait.
    """

    update_accepted: bool
    open_seconds: float
    queue_place: int


@dataclass(frozen=True)
class SealedRound:
    """What a sealed round hands to its release. Of an evaluation nothing was added to the rule."""

    rule: Rule
    contributors: tuple[str, ...]
    commitments: tuple[bytes, ...]
    metrics: dict[str, float]
    exclusions: tuple[tuple[str, "pb.Reason"], ...]
