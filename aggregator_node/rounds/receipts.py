"""Signs receipts: of an update that is accepted, and anew of one that was released by an earlier process.

No receipt is kept on the disk, because it says what one owner declared. It can be made again, and only for
its owner, since the owner chose its salt and the release statement lists the digest of the whole.
"""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_node.rounds.session import RoundSession
from aggregator_node.rounds.state import not_of_the_cohort
from aggregator_node.storage.store import Store
from cairn.errors import NotFound, WrongState
from cairn.protocol.messages import check_digest, parse
from cairn.protocol.statements import RECEIPT, commitment_of, sign
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb

Declared = aggregator_pb2.UpdateHeader | aggregator_pb2.GetReceiptRequest


class Receipts:
    """Finds receipts, or signs them again. Every method may be called from any thread."""

    def __init__(
        self, find: Callable[[bytes], RoundSession | None], store: Store, key: Ed25519PrivateKey
    ) -> None:
        """`find` returns a round that is open or has just ended."""
        self._find = find
        self._store = store
        self._key = key

    def of(self, owner: str, asked: aggregator_pb2.GetReceiptRequest) -> pb.Signed:
        """The receipt of the owner's update.

        Raises CallerNotAllowed outside the cohort, NotFound where no such update was accepted, InvalidMessage
        for a digest or a salt that is none, and WrongState for a round that ended without a release and is not
        kept any more.
        """
        digest = check_digest(asked.manifest_digest, "manifest_digest")
        session = self._find(digest)
        if session is not None:
            return session.receipt(owner)
        row = self._store.round(digest)
        if owner not in parse(pb.RoundManifest, parse(pb.Signed, row.manifest).body).cohort:
            raise not_of_the_cohort(owner)
        if row.statement is None:
            raise WrongState("the round has ended", pb.REASON_ROUND_ENDED)
        statement = parse(pb.ReleaseStatement, parse(pb.Signed, row.statement).body)
        signed = signed_receipt(self._key, digest, owner, asked.payload_digest, asked)
        if commitment_of(signed) not in statement.commitments:
            raise NotFound("no such update of yours was accepted in this round")
        return signed


def signed_receipt(
    key: Ed25519PrivateKey,
    manifest_digest: bytes,
    owner: str,
    payload_digest: bytes,
    declared: Declared,
) -> pb.Signed:
    """The receipt of an update of a round. Raises InvalidMessage for a salt that is none."""
    receipt = aggregator_pb2.Receipt(
        manifest_digest=manifest_digest,
        owner=owner,
        payload_digest=payload_digest,
        examples=declared.examples,
        metrics=declared.metrics,
        salt=check_digest(declared.salt, "salt"),
    )
    return sign(key, RECEIPT, receipt.SerializeToString(deterministic=True))
