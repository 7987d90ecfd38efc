"""One job at a real aggregator beside the reference: every step is made of both, and what can be seen must agree.

A fault leaves open whether the call under way had its effect. Then the aggregator's ledger and the owner's receipt
say which, and must say one of the two: that the call was made, or that it was not.
"""

import copy
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc

from cairn.messages import job_spec_to_bytes
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.chaos.puppet import LEASE_SECONDS, Puppet
from tests.chaos.reference import (
    ALREADY_EXISTS,
    FAILED_PRECONDITION,
    MOST_ABORTS,
    Reference,
    Refusals,
)
from tests.chaos.sight import SCHEMA, Sight, salt_of
from tests.hostile.audit import check_books
from tests.hostile.checks import chain, database
from tests.scenarios.processes import until
from tests.service.network import OWNERS, SECONDS, OpenRound

DEADLINE_SECONDS = 100  # more than three leases
MEMBERS = OWNERS[:4]  # the fifth is of the federation and not of the job
_OVER = {"released", "aborted"}


class Scene(Sight):
    """Every method is one step, and fails where the aggregator does what the reference does not."""

    def __init__(self, puppet: Puppet, floor: int) -> None:
        job = puppet.job(
            schema=SCHEMA, owners=MEMBERS, floor=floor, rounds=1000, deadline=DEADLINE_SECONDS
        )
        super().__init__(puppet, job)
        self.jobs = [job]  # as each process has it that was in charge, the first first
        self.reference = Reference(MEMBERS, floor, LEASE_SECONDS, DEADLINE_SECONDS, puppet.now)

    # What the coordinator does.

    def open(
        self, ahead: int, cohort: tuple[str, ...], *, other_base: bool = False, again: bool = False
    ) -> None:
        """Open the round that is so many ahead of the last."""
        number = max(0, len(self.reference.rounds) + ahead)
        base = self.releases[max(self.releases)][1] if self.releases else self.job.first_base
        if other_base:
            base = bytes(len(base) - 1) + b"\1"

        def call() -> bytes:
            self.opened[number] = self.job.open(cohort, base, number)
            return self.opened[number].digest

        self._step(lambda r: r.open(number, cohort, SCHEMA.digest(base)), call, again=again)

    def abort(self, number: int) -> None:
        self._step(lambda r: r.abort(r.rounds[number - 1]), self.of(number).abort)

    def collect(self, number: int, offset: int = 0, *, again: bool = False) -> None:
        def call() -> bytes:
            statement, payload = self.collected(number, offset)
            assert (statement, payload) == (
                self.releases[number][0],
                self.releases[number][1][offset:],
            )
            return payload

        self._step(lambda r: r.collect(r.rounds[number - 1]), call, again=again)

    def take_over(self) -> None:
        """Another process registers the job, and gets the next epoch, however often it has to ask."""
        job = copy.copy(self.job)
        job.process = secrets.token_bytes(32)
        self._step(lambda _: set(), lambda: job.register().epoch, again=True)
        job.coordinator = self.puppet.release()
        assert job.register().epoch == self.job.epoch + 1
        self.jobs.append(job)
        self.job = job

    def old_process(self, call: str) -> None:
        """A process that was replaced asks for something: it is refused, whatever that is."""
        old = copy.copy(self.jobs[0])
        old.coordinator = self.puppet.release()
        calls: dict[str, Callable[[], object]] = {"register": old.register, "open": old.open}
        if self.opened:
            known = OpenRound(old, self.opened[1].signed)
            calls |= {
                "abort": known.abort,
                "collect": known.collect,
                "watch": lambda: list(known.watch()),
            }
        chosen = calls.get(call, old.register)
        self._step(lambda _: {FAILED_PRECONDITION}, chosen, reason="FENCED")

    def other_spec(self) -> None:
        """The job's name with other rules."""
        other = copy.copy(self.job)
        spec = replace(self.job.spec, rounds=self.job.spec.rounds - 1)
        other.body = job_spec_to_bytes(spec)
        self._step(lambda _: {ALREADY_EXISTS}, other.register)

    # What owners do.

    def join(self, number: int, owner: str, *, again: bool = False) -> None:
        self._step(
            lambda r: r.join(r.rounds[number - 1], owner),
            lambda: self.of(number).join(owner).lease_seconds,
            again=again,
            who=owner,
        )

    def decline(self, number: int, owner: str) -> None:
        self._step(
            lambda r: r.decline(r.rounds[number - 1], owner),
            lambda: self.of(number).decline(owner, pb.REASON_STOPPING),
        )

    def push(
        self, number: int, owner: str, *, flaw: str = "", other: bool = False, again: bool = False
    ) -> None:
        """Push: the same as before where something was accepted, and it should not be another."""
        flaw = "" if self.puppet.is_armed else flaw
        update = b"" if other else self.reference.rounds[number - 1].accepted.get(owner, b"")
        update = update or self.update(owner)
        parts = self.parts(number, update, salt_of(owner), flaw)

        def call() -> bytes:
            return self.held(number, owner, self._submit(number, owner, parts))

        self._step(
            lambda r: r.push(r.rounds[number - 1], owner, update, flaw),
            call,
            again=again,
            who=owner,
        )

    def break_off(self, number: int, owner: str) -> None:
        """The owner's connection goes in the middle of an update; the owner comes again."""
        leave = threading.Event()
        parts = self.parts(number, self.update(owner), salt_of(owner), "short")

        def broken() -> Iterator[aggregator_pb2.SubmitUpdateRequest]:
            yield from parts
            leave.wait(SECONDS)

        def call() -> None:
            pushing = self.puppet.intake(owner).SubmitUpdate.future(broken(), timeout=SECONDS)
            pushing.initial_metadata()  # it is this owner's turn, or it was refused
            pushing.cancel()
            leave.set()

        self._step(lambda _: set(), call, who=owner)
        self.join(number, owner)

    def ask_for_receipt(self, number: int, owner: str) -> None:
        update = self.reference.rounds[number - 1].accepted.get(owner, b"")
        self._step(
            lambda r: r.receipt(r.rounds[number - 1], owner),
            lambda: self.receipt(number, owner, update),
        )

    # What happens to the aggregator.

    def advance(self, seconds: float) -> None:
        self.puppet.advance(seconds)
        self.reference.now = self.puppet.now
        known = self.reference.current

        def looked() -> bool:
            return known is None or self.puppet.seen >= self.puppet.now or self.puppet.has_acted

        until(looked, "the round looks at the clock")
        self._step(lambda _: set(), lambda: None)

    def restart(self, *, kill: bool) -> None:
        self.puppet.restart(kill=kill)
        self.reference.restarted()
        self.reconnect()

    # What must hold.

    def check(self) -> None:
        """After every step: ledger and rounds are as the reference has them, and no update is on the disk."""
        self.follow_ledger()
        assert self.entries == self.reference.records
        for known in self.reference.rounds[-2:]:
            assert self.state(known.number) == known.state
        if self.releases:
            last = max(self.releases)
            with self.puppet.without_faults():
                assert self.collected(last) == self.releases[last]
        self.check_disk()

    def finish(self) -> None:
        """The job goes on, whatever happened; nothing that was released or recorded has changed."""
        self.puppet.disarm()
        if self.reference.current:
            self.abort(self.reference.current.number)
        if self.reference.aborts < MOST_ABORTS:
            self.open(1, MEMBERS)
            number = len(self.reference.rounds)
            for owner in MEMBERS:
                self.join(number, owner)
            for owner in MEMBERS:
                self.push(number, owner)
            assert self.reference.rounds[-1].state == "released"
        for number, (statement, _) in self.releases.items():
            request = aggregator_pb2.GetStatementRequest(manifest_digest=self.opened[number].digest)
            answer = self.puppet.record("coordinator").GetStatement(request, timeout=SECONDS)
            assert answer.statement.SerializeToString(deterministic=True) == statement
        self.check()
        with database(self.puppet.state / "aggregator.sqlite") as db:
            assert [entry.head for entry in chain(db, "ledger")] == self.heads
        check_books(self.puppet.state, self.puppet.key)

    # How a step is made.

    def _submit(
        self, number: int, owner: str, parts: list[aggregator_pb2.SubmitUpdateRequest]
    ) -> pb.Signed:
        """Push, again where an earlier push that broke off has not been noticed yet, as owners do."""
        while True:
            try:
                return self.of(number).submit(owner, parts)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise

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
            self.join(current.number, who)  # or nobody knows until when its lease is

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
