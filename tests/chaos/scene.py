"""What can happen to one job at a real aggregator: each is one step, made of the aggregator and of the reference."""

import copy
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import grpc

from cairn.protocol.messages import job_spec_to_bytes
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.chaos.puppet import LEASE_SECONDS, Puppet
from tests.chaos.reference import (
    ALREADY_EXISTS,
    FAILED_PRECONDITION,
    MOST_ABORTS,
    Reference,
)
from tests.chaos.sight import SCHEMA, salt_of
from tests.chaos.stepping import Stepping
from tests.hostile.audit import check_books
from tests.hostile.checks import chain, database
from tests.scenarios.processes import until
from tests.service.network import OWNERS, SECONDS, OpenRound

DEADLINE_SECONDS = 100  # more than three leases
MEMBERS = OWNERS[:4]  # the fifth is of the federation and not of the job


class Scene(Stepping):
    """Every method is one step, and fails where the aggregator does what the reference does not."""

    def __init__(self, puppet: Puppet, floor: int) -> None:
        job = puppet.job(
            schema=SCHEMA, owners=MEMBERS, floor=floor, rounds=1000, deadline=DEADLINE_SECONDS
        )
        reference = Reference(MEMBERS, floor, LEASE_SECONDS, DEADLINE_SECONDS, puppet.now)
        super().__init__(puppet, job, reference)
        self.jobs = [job]  # as each process has it that was in charge, the first first

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
