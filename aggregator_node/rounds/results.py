"""What a round keeps of accepted updates, and what a sealed one is to release."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from aggregator_node.aggregation.metrics import average_metrics
from aggregator_node.aggregation.rule import Rule
from cairn.errors import Conflict, NotFound
from cairn.protocol.statements import commitment_of
from cairn.v1 import round_pb2 as pb


@dataclass(frozen=True)
class SealedRound:
    """What a sealed round hands to its release. Of an evaluation nothing was added to the rule."""

    rule: Rule
    contributors: tuple[str, ...]
    commitments: tuple[bytes, ...]
    metrics: dict[str, float]
    exclusions: tuple[tuple[str, "pb.Reason"], ...]


@dataclass(frozen=True)
class Accepted:
    """What is kept of an accepted update beside its share in the sum; the digests say which update it is."""

    header_digest: bytes
    payload_digest: bytes
    receipt: pb.Signed = field(compare=False)
    metrics: Mapping[str, float] = field(compare=False)


class AcceptedUpdates:
    """The accepted updates of one round, by owner. The round holds its lock around every call."""

    def __init__(self) -> None:
        self._of: dict[str, Accepted] = {}

    def __contains__(self, owner: str) -> bool:
        return owner in self._of

    def __len__(self) -> int:
        return len(self._of)

    def receipt(self, owner: str) -> pb.Signed:
        """The owner's receipt. Raises NotFound where no update of its was accepted."""
        if owner not in self._of:
            raise NotFound("no update of yours was accepted in this round")
        return self._of[owner].receipt

    def repeated(self, owner: str, update: Accepted) -> pb.Signed | None:
        """The receipt, where the same update was accepted before. Raises Conflict where another was."""
        before = self._of.get(owner)
        if before is None:
            return None
        if before != update:
            raise Conflict("another update of this owner was accepted in this round")
        return before.receipt

    def add(self, owner: str, update: Accepted) -> None:
        self._of[owner] = update

    def sealed(
        self, rule: Rule, counts: Mapping[str, int], exclusions: tuple[tuple[str, "pb.Reason"], ...]
    ) -> SealedRound:
        """What is to be released, where each owner counts so much."""
        owners = tuple(sorted(counts))
        return SealedRound(
            rule=rule,
            contributors=owners,
            commitments=tuple(sorted(commitment_of(self._of[owner].receipt) for owner in owners)),
            metrics=average_metrics([(self._of[owner].metrics, counts[owner]) for owner in owners]),
            exclusions=exclusions,
        )
