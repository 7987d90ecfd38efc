"""What an aggregator should do, in plain Python: a second opinion on every call, from the documents alone.

A call that breaks several rules may be refused for any of them, so each answer here is the set of the statuses
that it may have; an empty set means that it must succeed, and then it has had its effect.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import grpc

PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
ALREADY_EXISTS = grpc.StatusCode.ALREADY_EXISTS
NOT_FOUND = grpc.StatusCode.NOT_FOUND

MOST_ABORTS = 20
_AWAITED = ("invited", "joined")
Refusals = set[grpc.StatusCode]


@dataclass
class Known:
    """A round: where each owner of its cohort stands, and what was accepted of whom."""

    number: int
    cohort: tuple[str, ...]
    base: bytes
    deadline: float
    state: str = "open"  # then released or aborted
    in_memory: bool = True  # ended, if at all, since the aggregator's last start
    seats: dict[str, str] = field(default_factory=dict)
    leases: dict[str, float] = field(default_factory=dict)
    accepted: dict[str, bytes] = field(default_factory=dict)  # the update of whom it is

    @property
    def awaited(self) -> list[str]:
        return [owner for owner, seat in self.seats.items() if seat in _AWAITED]


class Reference:
    """One job at an aggregator. `now` is the time of its monotonic clock."""

    def __init__(
        self, owners: Iterable[str], floor: int, lease: float, deadline: float, now: float
    ) -> None:
        self.owners, self.floor = frozenset(owners), floor
        self.lease, self.deadline, self.now = lease, deadline, now
        self.rounds: list[Known] = []
        self.last_release = b""  # the digest of its model
        self.aborts = 0  # by the coordinator, since then
        self.records: list[tuple[str, int]] = [("job", 0)]  # the job's entries of the ledger

    @property
    def current(self) -> Known | None:
        """The round that is open."""
        return self.rounds[-1] if self.rounds and self.rounds[-1].state == "open" else None

    def open(self, number: int, cohort: tuple[str, ...], base: bytes) -> Refusals:
        for known in self.rounds:
            if known.number == number:
                same = (known.cohort, known.base) == (cohort, base)
                return set() if same else {FAILED_PRECONDITION, INVALID_ARGUMENT}
        refusals = set()
        if self.current or number != len(self.rounds) + 1 or self.aborts >= MOST_ABORTS:
            refusals.add(FAILED_PRECONDITION)
        if self.last_release and base != self.last_release:
            refusals.add(FAILED_PRECONDITION)
        if not set(cohort) <= self.owners or len(cohort) < self.floor:
            refusals.add(INVALID_ARGUMENT)
        if not refusals:
            opened = Known(number, cohort, base, self.now + self.deadline)
            opened.seats = dict.fromkeys(cohort, "invited")
            opened.leases = dict.fromkeys(cohort, self.now + self.lease)
            self.rounds.append(opened)
            self.records.append(("open", number))
        return refusals

    def join(self, known: Known, owner: str) -> Refusals:
        refusals = self._at(known, owner, {"invited", "joined", "lost", "accepted"})
        if not refusals:
            if known.seats[owner] != "accepted":
                known.seats[owner] = "joined"
            known.leases[owner] = self.now + self.lease
        return refusals

    def decline(self, known: Known, owner: str) -> Refusals:
        refusals = self._at(known, owner, {"invited", "joined", "lost", "declined"})
        if not refusals:
            known.seats[owner] = "declined"
        return refusals

    def push(self, known: Known, owner: str, update: bytes, flaw: str = "") -> Refusals:
        """`flaw`: short or corrupt, which a retry mends; nan or base, which puts the owner out."""
        if known.in_memory and owner in known.accepted:
            if flaw:
                return {INVALID_ARGUMENT, ALREADY_EXISTS}
            return set() if known.accepted[owner] == update else {ALREADY_EXISTS}
        refusals = self._at(known, owner, {"joined"})
        if refusals:
            return refusals
        known.leases[owner] = self.now + self.lease
        if flaw:
            known.seats[owner] = "refused" if flaw in {"nan", "base"} else "joined"
            return {INVALID_ARGUMENT}
        known.seats[owner] = "accepted"
        known.accepted[owner] = update
        return set()

    def receipt(self, known: Known, owner: str) -> Refusals:
        if not known.in_memory and known.state != "released":
            return {FAILED_PRECONDITION}
        if owner in known.accepted:
            return set()
        return {NOT_FOUND} if owner in known.seats or not known.in_memory else {PERMISSION_DENIED}

    def abort(self, known: Known) -> Refusals:
        if known.state == "open":
            self.aborts += 1
            self.ended(known, "aborted")
        return {FAILED_PRECONDITION} if known.state == "released" else set()

    def collect(self, known: Known) -> Refusals:
        if known.state != "released":
            return {FAILED_PRECONDITION}
        last = [r for r in self.rounds if r.state == "released"][-1]
        return set() if known is last else {NOT_FOUND}

    def due(self) -> str:
        """How the open round ends now: released, aborted or, as long as it goes on, not at all."""
        known = self.current
        if known is None:
            return ""
        for owner in known.awaited:
            if self.now >= known.leases[owner]:
                known.seats[owner] = "lost"
        accepted, awaited = len(known.accepted), len(known.awaited)
        if accepted + awaited < self.floor:
            return "aborted"
        if awaited and self.now < known.deadline:
            return ""
        return "released" if accepted >= self.floor else "aborted"

    def ended(self, known: Known, state: str) -> None:
        known.state = state
        self.records.append(("release" if state == "released" else "abort", known.number))

    def restarted(self) -> None:
        """What was in memory only is gone, and with it the open round."""
        if self.current:
            self.ended(self.current, "aborted")
        for known in self.rounds:
            known.in_memory = False

    def _at(self, known: Known, owner: str, seats: set[str]) -> Refusals:
        """Whether the owner may do what owners on these seats may."""
        refusals = set()
        if known.state != "open":
            refusals.add(FAILED_PRECONDITION)
        if owner not in known.seats:
            refusals.add(PERMISSION_DENIED)
        elif known.seats[owner] not in seats:
            refusals.add(FAILED_PRECONDITION)
        return refusals
