"""One step: the call to a real aggregator and to the reference, after which all that can be seen must agree.

A fault leaves open whether the call under way had its effect. Then the aggregator's ledger and the owner's receipt
say which, and must say one of the two: that the call was made, or that it was not.
"""

import copy
from collections.abc import Callable
from typing import Any

import grpc

from tests.chaos.puppet import Puppet
from tests.chaos.reference import Reference, Refusals
from tests.chaos.sight import SCHEMA, Sight
from tests.scenarios.processes import until
from tests.service.network import Job

_OVER = {"released", "aborted"}


class Stepping(Sight):
    """A job, and what the reference knows of it."""

    def __init__(self, puppet: Puppet, job: Job, reference: Reference) -> None:
        super().__init__(puppet, job)
        self.reference = reference

    def _step(
        self,
        expect: Callable[[Reference], Refusals],
        call: Callable[[], object],
        *,
        again: bool = False,
        reason: str = "",
        who: str = "",
    ) -> None:
        """Make the call; `again` throws the answer away and calls once more, which must bring the same.

        `who` is the owner whose call it is, where its effect can be in doubt after a fault.
        """
        before = copy.deepcopy(self.reference)
        refusals = expect(self.reference)
        answers = set()
        for _ in range(1 + again):
            try:
                answers.add(call())
            except grpc.RpcError as error:
                if self.puppet.has_acted:
                    break
                _check_refusal(error, refusals, reason)
            else:
                assert not refusals or self.puppet.has_acted, f"none of {refusals}"
        assert len(answers) <= 1
        self._see_to_end()
        if self.puppet.has_acted:
            self._reconcile(before, call, who)
            self.puppet.disarm()

    def _see_to_end(self) -> None:
        """Where the reference says that the round ends now, wait until it has, and compare how."""
        due, known = self.reference.due(), self.reference.current
        if not due or known is None:
            return
        number = known.number
        until(lambda: self.puppet.has_acted or self._is_over(number), "the round ends")
        if not self.puppet.has_acted:
            assert self.state(number) == due
            self._end(due)

    def _is_over(self, number: int) -> bool:
        try:
            return self.state(number) in _OVER
        except grpc.RpcError:
            if not self.puppet.has_acted:
                raise
            return False

    def _end(self, how: str) -> None:
        known = self.reference.current
        assert known is not None
        self.reference.ended(known, how)
        if how == "released":
            with self.puppet.without_faults():
                self.releases[known.number] = self.collected(known.number)
            self.check_release(known)
            self.reference.last_release = SCHEMA.digest(self.releases[known.number][1])
            self.reference.aborts = 0

    # What a fault has done.

    def _reconcile(self, before: Reference, call: Callable[[], object], who: str) -> None:
        """Find out what became of the call and of the process, and hold it against what may be."""
        if self.puppet.kills:
            self.puppet.await_end()
        seen: list[Reference] = []
        until(lambda: self.puppet.has_ended or self._settled(before, who, seen), "it is settled")
        crashed = self.puppet.has_ended
        if crashed:
            self.puppet.revive()
            self.reconnect()
            self.follow_ledger()
            seen[:] = [self.reference if self._has_opened() else before]
        self.reference = seen[-1]
        self._take_over_end(crashed=crashed)
        if self.reference.rounds and self.reference.rounds[-1].number not in self.opened:
            call()  # the answer was lost: the same manifest again
        current = self.reference.current
        if who and current and current.seats.get(who) in {"invited", "joined", "lost"}:
            self._renew(current.number, who)  # or nobody knows until when its lease is

    def _renew(self, number: int, owner: str) -> None:
        self.puppet.disarm()
        self._step(
            lambda r: r.join(r.rounds[number - 1], owner),
            lambda: self.of(number).join(owner).lease_seconds,
        )

    def _settled(self, before: Reference, who: str, seen: list[Reference]) -> bool:
        """Whether all is quiet, with the reference in `seen` that agrees; not where the process is about to end."""
        try:
            self.follow_ledger()
            agrees = self.reference if self._has_opened() else before
            current = agrees.current
            if current and who in current.accepted and who not in before.rounds[-1].accepted:
                agrees = self.reference if self._has_receipt(current.number, who) else before
            seen.append(agrees)
            known = agrees.current
            over = ("release", "abort")
            return not (known and agrees.due()) or any(
                (kind, known.number) in self.entries for kind in over
            )
        except grpc.RpcError:
            return False

    def _has_opened(self) -> bool:
        """Whether the last round of the reference is in the ledger."""
        rounds = self.reference.rounds
        return not rounds or ("open", rounds[-1].number) in self.entries

    def _has_receipt(self, number: int, owner: str) -> bool:
        try:
            self.receipt(number, owner, self.reference.rounds[number - 1].accepted[owner])
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return False
        return True

    def _take_over_end(self, *, crashed: bool) -> None:
        """How the open round has ended, by the ledger: as was due, or without a release."""
        known = self.reference.current
        if known is not None:
            due = self.reference.due()
            if ("release", known.number) in self.entries:
                assert due == "released"
                self._end(due)
            elif ("abort", known.number) in self.entries:
                self._end("aborted")
                known.in_memory = known.number in self.opened
            else:
                assert not crashed, "a round is open after a restart"
        if crashed:
            self.reference.restarted()


def _check_refusal(error: Any, refusals: Refusals, reason: str) -> None:
    assert error.code() in refusals, f"{error.code()}: {error.details()}"
    assert not reason or dict(error.trailing_metadata())["cairn-reason"] == reason
