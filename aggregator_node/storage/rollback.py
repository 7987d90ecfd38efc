"""Signs how far the ledger is, and finds out from what owners have seen whether it was rolled back.

An owner repeats the last signed head that it was given. Where the ledger is behind that head, or has
another one in its place, the state directory was replaced by an older or another copy, and to go on
would open the same rounds again: the aggregator stops, and does not start before its state is back.
"""

import base64
import json
import threading
from collections.abc import Callable
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_node.storage.store import Store
from cairn.errors import InvalidMessage, UsageError, WrongState
from cairn.protocol.messages import parse
from cairn.protocol.statements import HEAD, sign, verified_head
from cairn.storage.files import write_atomically
from cairn.v1 import round_pb2 as pb

log = structlog.get_logger()

EVIDENCE = "rolled-back.json"


class RollbackDetector:
    """Every public method may be called from any thread."""

    def __init__(
        self, federation: str, store: Store, key: Ed25519PrivateKey, stop: Callable[[], object]
    ) -> None:
        """Raise UsageError where the ledger is still behind a head that stopped it before."""
        self._federation = federation
        self._store = store
        self._key = key
        self._stop = stop
        self._lock = threading.Lock()
        self._signed: tuple[int, pb.Signed] | None = None
        self._evidence = store.path / EVIDENCE
        self.rolled_back = False
        if self._evidence.exists():
            self._check_evidence()

    def head(self) -> pb.Signed:
        """The signed head of the ledger as it is now."""
        number, head = self._store.ledger_head()
        with self._lock:
            if self._signed is None or self._signed[0] != number:
                message = pb.LedgerHead(federation=self._federation, number=number, head=head)
                self._signed = number, sign(self._key, HEAD, message.SerializeToString())
            return self._signed[1]

    def check(self, seen: pb.Signed) -> None:
        """Raise WrongState, and have the node stop, where the ledger does not hold a head we signed.

        Raises InvalidMessage for a head that is not ours.
        """
        if self._is_behind(seen):
            log.critical("the ledger is behind a head that this aggregator signed; stopping")
            self.rolled_back = True
            self._stop()
            self._keep_evidence(seen)
        if self.rolled_back:
            raise WrongState(
                "the aggregator's ledger is behind a head that it signed: its state was replaced",
                pb.REASON_ROLLED_BACK,
            )

    def _keep_evidence(self, seen: pb.Signed) -> None:
        text = {"seen_head": base64.b64encode(seen.SerializeToString()).decode()}
        try:
            write_atomically(self._evidence, [json.dumps(text).encode()])
        except OSError as error:  # after a restart the next owner shows its head again
            log.error("the evidence could not be kept", trouble=str(error))

    def _is_behind(self, seen: pb.Signed) -> bool:
        head = verified_head(self._key.public_key(), seen)
        if head.federation != self._federation:
            raise InvalidMessage("the ledger head is another federation's")
        return self._store.ledger_head_at(head.number) != head.head

    def _check_evidence(self) -> None:
        path: Path = self._evidence
        try:
            text = json.loads(path.read_text(encoding="utf-8"))["seen_head"]
            behind = self._is_behind(parse(pb.Signed, base64.b64decode(text)))
        except (OSError, ValueError, KeyError, TypeError, InvalidMessage) as error:
            raise UsageError(f"{path} cannot be read: {error}") from None
        if behind:
            raise UsageError(
                f"the ledger in {self._store.path} is behind a head that this aggregator signed and an"
                " owner has seen: the directory was replaced by an older or another copy. Put the"
                " newest copy back. Where it is lost, begin with an empty directory and a new signing"
                " key, which all owners and the coordinator then put into their files"
            )
        path.unlink()
