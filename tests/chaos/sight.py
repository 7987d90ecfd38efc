"""What can be seen of one job at an aggregator, over the network and on its disk, and what all of it must keep to."""

import json
import secrets
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from itertools import count

import numpy as np

from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.statements import HEAD, RECEIPT, STATEMENT, verified
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.chaos.puppet import Puppet
from tests.chaos.reference import Known
from tests.service.network import OWNERS, SECONDS, Job, OpenRound

_ROW_FLOATS = (
    16_384  # a row is a chunk of the smallest size, so that an update can break off between two
)
_CHUNK_BYTES = 4 * _ROW_FLOATS
_COUNTED_BYTES = len(OWNERS) * _CHUNK_BYTES
_SECRET_BYTES = 64
SCHEMA = Schema.of(
    [
        TensorSpec("counted", "F32", (len(OWNERS), _ROW_FLOATS)),
        TensorSpec("secret", "F32", (_SECRET_BYTES // 4,)),
    ]
)
_ENDED = {
    "release": (aggregator_pb2.ROUND_STATE_RELEASED, "released"),
    "abort": (aggregator_pb2.ROUND_STATE_ABORTED, "aborted"),
}


def salt_of(owner: str) -> bytes:
    return sha256(owner.encode()).digest()


class Sight:
    """An owner's update is 1 in the row that is its own, so that an average tells who is in it, and how often."""

    def __init__(self, puppet: Puppet, job: Job) -> None:
        self.puppet = puppet
        self.job = job  # as its present coordinator has it
        self.opened: dict[int, OpenRound] = {}
        self.receipts: dict[tuple[int, str], bytes] = {}
        self.releases: dict[
            int, tuple[bytes, bytes]
        ] = {}  # the signed statement and the payload, as first seen
        self.entries: list[tuple[str, int]] = []  # of this job: kind and round
        self.heads: list[bytes] = []  # of the whole ledger
        self._secrets: list[bytes] = []

    def of(self, number: int) -> OpenRound:
        """A round's calls, by the coordinator that has the job now."""
        return OpenRound(self.job, self.opened[number].signed)

    def reconnect(self) -> None:
        self.job.coordinator = self.puppet.release()

    def update(self, owner: str) -> bytes:
        """A new update: no two have the same secret."""
        counted = np.zeros((len(OWNERS), _ROW_FLOATS), "<f4")
        counted[OWNERS.index(owner)] = 1
        secret = np.random.default_rng(secrets.randbits(64)).normal(size=_SECRET_BYTES // 4)
        self._secrets.append(secret.astype("<f4").tobytes())
        return counted.tobytes() + self._secrets[-1]

    def parts(
        self, number: int, update: bytes, salt: bytes, flaw: str = ""
    ) -> list[aggregator_pb2.SubmitUpdateRequest]:
        """The stream of an update, with a flaw or without."""
        digest = SCHEMA.digest(update)
        if flaw == "nan":
            update = np.array(np.nan, "<f4").tobytes() + update[4:]
            digest = SCHEMA.digest(update)
        if flaw == "corrupt":
            update = bytes([update[0] ^ 1]) + update[1:]
        changes = {"base_digest": bytes(32)} if flaw == "base" else {}
        header = self.of(number).header(salt=salt, **changes)
        chunks = [update[at : at + _CHUNK_BYTES] for at in range(0, len(update), _CHUNK_BYTES)]
        parts = [
            aggregator_pb2.SubmitUpdateRequest(header=header),
            *(aggregator_pb2.SubmitUpdateRequest(chunk=chunk) for chunk in chunks),
            aggregator_pb2.SubmitUpdateRequest(
                commit=aggregator_pb2.UpdateCommit(payload_digest=digest)
            ),
        ]
        return parts[:3] if flaw == "short" else parts

    def receipt(self, number: int, owner: str, update: bytes) -> bytes:
        """Ask for the receipt of an update, which is described in case it has to be signed anew."""
        request = aggregator_pb2.GetReceiptRequest(
            manifest_digest=self.opened[number].digest,
            payload_digest=SCHEMA.digest(update) if update else bytes(32),
            examples=1,
            salt=salt_of(owner),
        )
        answer = self.puppet.intake(owner).GetReceipt(request, timeout=SECONDS)
        return self.held(number, owner, answer.receipt)

    def held(self, number: int, owner: str, signed: pb.Signed) -> bytes:
        """A receipt that an owner was given: the same one each time."""
        body = verified(self.puppet.key, RECEIPT, signed)
        receipt = aggregator_pb2.Receipt.FromString(body)
        assert (receipt.manifest_digest, receipt.owner) == (self.opened[number].digest, owner)
        assert self.receipts.setdefault((number, owner), body) == body
        return body

    def state(self, number: int) -> str:
        """Where the round stands: by the ledger, and where it has ended also as its coordinator is told."""
        self.follow_ledger()
        ends = [kind for kind, of in self.entries if of == number and kind in _ENDED]
        if not ends:
            return "open"
        told = list(self.of(number).watch())[-1].state
        assert [told] == [_ENDED[kind][0] for kind in ends]
        return _ENDED[ends[0]][1]

    def collected(self, number: int, offset: int = 0) -> tuple[bytes, bytes]:
        """The signed statement, and the release's bytes from the offset on."""
        request = aggregator_pb2.CollectReleaseRequest(
            manifest_digest=self.opened[number].digest, epoch=self.job.epoch, offset=offset
        )
        parts = list(self.job.coordinator.CollectRelease(request, timeout=SECONDS))
        statement = parts[0].header.statement.SerializeToString(deterministic=True)
        return statement, b"".join(part.chunk for part in parts[1:])

    def check_release(self, known: Known) -> None:
        """Of the accepted owners, each once and nobody else, and of these alone it says so."""
        statement, payload = self.releases[known.number]
        body = verified(self.puppet.key, STATEMENT, pb.Signed.FromString(statement))
        stated = pb.ReleaseStatement.FromString(body)
        counted = set(known.accepted)
        assert counted <= set(known.cohort)
        assert {e.owner for e in stated.exclusions} == set(known.cohort) - counted
        assert stated.contributors == len(counted) >= stated.floor >= 2
        assert stated.base_digest == known.base
        assert stated.release_digest == SCHEMA.digest(payload)
        rows = np.frombuffer(payload[:_COUNTED_BYTES], "<f4").reshape(len(OWNERS), -1)
        share = np.float32(1 / len(counted))
        for owner, row in zip(OWNERS, rows, strict=True):
            assert (row == (share if owner in counted else 0)).all(), owner
        receipts = [self.receipt(known.number, *pushed) for pushed in known.accepted.items()]
        assert sorted(sha256(body).digest() for body in receipts) == list(stated.commitments)
        held = {owner for number, owner in self.receipts if number == known.number}
        assert held == counted

    def follow_ledger(self) -> None:
        """Take in what is new in the ledger, each entry chained to the one before it."""
        for first in count(len(self.heads) + 1):
            request = aggregator_pb2.ListEntriesRequest(first=len(self.heads) + 1, limit=1000)
            answer = self.puppet.record("alice").ListEntries(request, timeout=SECONDS)
            self._take_in(answer.entries)
            head = pb.LedgerHead.FromString(verified(self.puppet.key, HEAD, answer.head))
            assert head.number >= first - 1, "the ledger became shorter"
            if head.number == len(self.heads):
                assert not self.heads or head.head == self.heads[-1]
                return

    def check_disk(self) -> None:
        """No update is anywhere in what the aggregator keeps."""
        for path in self.puppet.state.rglob("*"):
            with suppress(FileNotFoundError):  # a release that was replaced meanwhile
                content = path.read_bytes() if path.is_file() else b""
                assert not any(secret in content for secret in self._secrets), path

    def _take_in(self, entries: Iterable[aggregator_pb2.LedgerEntry]) -> None:
        for entry in entries:
            before = self.heads[-1] if self.heads else bytes(32)
            head = sha256(before + entry.kind.encode() + b"\0" + entry.body).digest()
            assert (entry.number, entry.head) == (len(self.heads) + 1, head)
            self.heads.append(head)
            facts = json.loads(entry.body)
            if facts["job"] == self.job.spec.name:
                self.entries.append((entry.kind, facts.get("round", 0)))
