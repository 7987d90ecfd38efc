"""The state machine of one round: who is where, and when it ends. Pure: the clock is passed in.

All transitions of an owner's state stand in `_TRANSITIONS`; an event that has no row there is refused and
changes nothing. Times are seconds of a monotonic clock.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from cairn.errors import CallerNotAllowed, WrongState
from cairn.protocol.reasons import told_to_others
from cairn.v1 import round_pb2 as pb


class OwnerState(StrEnum):
    """Where one owner of the cohort stands."""

    INVITED = "invited"
    JOINED = "joined"
    ACCEPTED = "accepted"  # its update counts
    DECLINED = "declined"  # by itself, before or while it trained
    REFUSED = "refused"  # its update broke a rule
    LOST = "lost"  # not heard of within its lease; it may come back while the round is open


class Event(StrEnum):
    JOIN = "join"
    DECLINE = "decline"
    ACCEPT = "accept"
    REFUSE = "refuse"
    EXPIRE = "expire"


class Ending(StrEnum):
    SEAL = "seal"
    ABORT = "abort"


_TRANSITIONS: dict[tuple[OwnerState, Event], OwnerState] = {
    (OwnerState.INVITED, Event.JOIN): OwnerState.JOINED,
    (OwnerState.INVITED, Event.DECLINE): OwnerState.DECLINED,
    (OwnerState.INVITED, Event.EXPIRE): OwnerState.LOST,
    (OwnerState.JOINED, Event.JOIN): OwnerState.JOINED,
    (OwnerState.JOINED, Event.DECLINE): OwnerState.DECLINED,
    (OwnerState.JOINED, Event.ACCEPT): OwnerState.ACCEPTED,
    (OwnerState.JOINED, Event.REFUSE): OwnerState.REFUSED,
    (OwnerState.JOINED, Event.EXPIRE): OwnerState.LOST,
    (OwnerState.LOST, Event.JOIN): OwnerState.JOINED,
    (OwnerState.LOST, Event.DECLINE): OwnerState.DECLINED,
    # The lease lapsed while the last bytes were checked.
    (OwnerState.LOST, Event.ACCEPT): OwnerState.ACCEPTED,
    (OwnerState.LOST, Event.REFUSE): OwnerState.REFUSED,
    (OwnerState.ACCEPTED, Event.JOIN): OwnerState.ACCEPTED,
    (OwnerState.DECLINED, Event.DECLINE): OwnerState.DECLINED,
}
_AWAITED = (OwnerState.INVITED, OwnerState.JOINED)


def not_of_the_cohort(owner: str) -> CallerNotAllowed:
    """What an owner is told of a round that is not for it."""
    return CallerNotAllowed(f"{owner} is not in the cohort of this round", pb.REASON_UNKNOWN_OWNER)


@dataclass
class _Owner:
    lease_until: float
    state: OwnerState = OwnerState.INVITED
    reason: "pb.Reason" = pb.REASON_UNSPECIFIED


@dataclass
class Round:
    """An open round: its cohort, its floor, its lease and its deadline."""

    floor: int
    lease_seconds: float
    deadline: float
    _owners: dict[str, _Owner] = field(default_factory=dict)

    @classmethod
    def open(
        cls, cohort: Iterable[str], floor: int, lease_seconds: float, deadline: float, now: float
    ) -> "Round":
        """Open a round at `now`; each owner has one lease from then to be heard of."""
        owners = {owner: _Owner(now + lease_seconds) for owner in cohort}
        return cls(floor, lease_seconds, deadline, owners)

    def state_of(self, owner: str) -> OwnerState:
        """Where the owner stands. Raises CallerNotAllowed outside the cohort."""
        return self._of(owner).state

    def join(self, owner: str, now: float) -> None:
        """The owner takes part, or renews its lease."""
        self._apply(owner, Event.JOIN)
        self._of(owner).lease_until = now + self.lease_seconds

    def decline(self, owner: str, reason: "pb.Reason") -> None:
        """The owner does not take part, or gives up."""
        self._apply(owner, Event.DECLINE, reason)

    def accept(self, owner: str) -> None:
        """The owner's update is complete and good."""
        self._apply(owner, Event.ACCEPT)

    def refuse(self, owner: str, reason: "pb.Reason") -> None:
        """The owner's update broke a rule that no retry mends."""
        self._apply(owner, Event.REFUSE, reason)

    def can_refuse(self, owner: str) -> bool:
        """Whether a refusal takes the owner out: one whose update was accepted before stays in, as it is in the sum."""
        return (self.state_of(owner), Event.REFUSE) in _TRANSITIONS

    @property
    def accepted(self) -> list[str]:
        return sorted(
            name for name, owner in self._owners.items() if owner.state is OwnerState.ACCEPTED
        )

    @property
    def awaited(self) -> int:
        """How many may still push."""
        return sum(owner.state in _AWAITED for owner in self._owners.values())

    def end_of_turn(self, now: float, at_a_time: int) -> float:
        """Until when a push that begins now may keep others waiting: the round's rest is shared out."""
        turns = -(-max(1, self.awaited) // at_a_time)
        return now + (self.deadline - now) / turns

    def settle(self, now: float) -> Ending | None:
        """Let leases lapse and say whether the round ends now, and how.

        It ends as soon as nobody is awaited any more, or too few are left for the floor, and at the
        deadline at the latest.
        """
        for name, owner in self._owners.items():
            if owner.state in _AWAITED and now >= owner.lease_until:
                self._apply(name, Event.EXPIRE, pb.REASON_LEASE_EXPIRED)
        awaited, accepted = self.awaited, len(self.accepted)
        if accepted + awaited < self.floor:
            return Ending.ABORT
        if awaited and now < self.deadline:
            return None
        return Ending.SEAL if accepted >= self.floor else Ending.ABORT

    def next_event(self) -> float:
        """When `settle` may have something new to say although nothing happened."""
        leases = (o.lease_until for o in self._owners.values() if o.state in _AWAITED)
        return min(self.deadline, *leases, self.deadline)

    def exclusions(self, now: float) -> list[tuple[str, "pb.Reason"]]:
        """Who was not counted, and what the others are told of why, once the round has ended.

        Where it ended before its deadline, those who were still awaited are not named: to end a round
        must not tell who had pushed by then.
        """
        return [
            (name, told_to_others(owner.reason or pb.REASON_DEADLINE))
            for name, owner in sorted(self._owners.items())
            if owner.state is not OwnerState.ACCEPTED
            and (owner.state not in _AWAITED or now >= self.deadline)
        ]

    def check_not_refused(self, owner: str) -> None:
        """Raise WrongState with the reason where this owner's update was refused: its answer may be lost."""
        record = self._of(owner)
        if record.state is OwnerState.REFUSED:
            raise WrongState(f"the update of {owner} was refused in this round", record.reason)

    def _of(self, owner: str) -> _Owner:
        if owner not in self._owners:
            raise not_of_the_cohort(owner)
        return self._owners[owner]

    def _apply(self, owner: str, event: Event, reason: "pb.Reason" = pb.REASON_UNSPECIFIED) -> None:
        record = self._of(owner)
        after = _TRANSITIONS.get((record.state, event))
        if after is None:
            raise WrongState(f"{owner} is {record.state} in this round and cannot {event}")
        if after is not record.state:
            record.state, record.reason = after, reason
