"""Writes down what this owner decided on an invitation: in its ledger."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cairn.errors import CairnError, Unavailable
from cairn.protocol.words import reason_word
from cairn.v1 import round_pb2 as pb
from owner_node import events
from owner_node.events import Observer
from owner_node.invitation import Invited
from owner_node.receipts import Receipts
from owner_node.records.history import LedgerHistory
from owner_node.records.ledger import NotRecorded, OwnerLedger, round_facts

# Of one run, of what the aggregator has not signed: a coordinator must not be able to fill the disk.
_MOST_REFUSALS = 1000


class DecisionLog:
    """The decisions of one owner. `destination` says the pinned aggregator's fingerprint."""

    def __init__(
        self,
        ledger: OwnerLedger,
        receipts: Receipts,
        destination: Callable[[], str],
        tell: Observer,
    ) -> None:
        self._ledger = ledger
        self._receipts = receipts
        self._destination = destination
        self._tell = tell
        self._answered: set[tuple[str, ...]] = set()
        self._refusals = 0
        self._left_out = 0

    @property
    def past(self) -> LedgerHistory:
        return self._ledger.past

    def refused(self, error: CairnError, invited: Invited | None = None) -> None:
        """An invitation that is not the aggregator's or not for this owner. Never raises.

        `invited` is what the aggregator has signed of it. Where that is nothing, only so many are
        written down in a run, and the others counted.
        """
        self._tell(events.InvitationRefused(error))
        key = ("refused", str(error))
        if invited is None and key not in self._answered:
            if self._refusals >= _MOST_REFUSALS:
                self._left_out += 1
                return
            self._refusals += 1
        self._once(key, {"why": str(error)})

    def close(self) -> None:
        """Write down how many refusals were left out, at the end of the run. Never raises."""
        if self._left_out:
            why = f"a run records {_MOST_REFUSALS} refusals of what the aggregator has not signed"
            self._once(("refused", why), {"why": why, "left_out": self._left_out})

    def declined(self, invited: Invited, error: CairnError) -> None:
        """This owner does not take part. Never raises."""
        self._tell(events.Declined(*invited.ids, error))
        word = reason_word(error.reason)
        facts = {**round_facts(invited), "reason": word, "why": str(error)}
        self._once(("declined", invited.digest.hex(), word), facts)

    def left_out(self, invited: Invited, error: CairnError) -> None:
        """The aggregator does not let this owner take part, or not to the end. Never raises."""
        self._tell(events.LeftOut(*invited.ids, error))
        word = reason_word(error.reason)
        facts = {"manifest_digest": invited.digest.hex(), "reason": word, "why": str(error)}
        self._once(("not accepted", invited.digest.hex(), word), facts)
        if error.reason == pb.REASON_ROLLED_BACK:
            self.refused(error, invited)

    def joined(self, invited: Invited) -> None:
        """This owner takes part. Raises NotRecorded."""
        if self.past.has_joined(invited):
            return
        facts = {"task": invited.job.task, "destination": self._destination()}
        self._ledger.record("joined", round_facts(invited) | facts)

    @contextmanager
    def telling_of_a_failure(self, task: str) -> Iterator[None]:
        """Tell it where what happens inside counts as a failure of the task."""
        before = self.past.budgets.failures(task)
        yield
        failures = self.past.budgets.failures(task)
        if failures > before:
            self._tell(events.FailureCounted(task, failures))

    def find_receipt(self, invited: Invited) -> None:
        """Fetch the receipt of an update that was accepted before. Never raises: it is asked for again."""
        try:
            self._receipts.find(invited.digest)
        except Unavailable as error:
            self._tell(events.ReceiptNotFetched(*invited.ids, error))

    def _once(self, key: tuple[str, ...], facts: Mapping[str, object]) -> None:
        """Record the same answer to the same question once in a run, however often it is asked.

        The key begins with the entry's kind.
        """
        if key in self._answered:
            return
        try:
            self._ledger.record(key[0], facts)
        except NotRecorded as error:
            self._tell(events.DecisionNotRecorded(error))
        else:
            self._answered.add(key)
