"""Decides which owners a round is opened without, because they failed again and again. Pure.

An owner that was not counted in `MISSES` training rounds in a row, for whatever reason, is left out of the next
`FIRST_REST` rounds. Then it has one try: where it is not counted again, it is left out for twice as long, up
to `LONGEST_REST`. Once it is counted, all is forgotten. Nobody is left out where too few would be left for the
floor: those come back whose turn is next. Rounds are counted by their numbers, and where groups take turns by the
numbers of their cycles (coordinator/groups.py), so that a rest is as many turns of the owner's own group.
"""

from collections.abc import Collection, Mapping
from dataclasses import astuple, dataclass

MISSES = 3
FIRST_REST = 2
LONGEST_REST = 32

Failing = Mapping[str, tuple[int, int, int]]


@dataclass
class _Record:
    """How an owner did, in the order of `Failing`."""

    missed: int = 0
    rest: int = FIRST_REST
    back_in: int = 0


class Backoff:
    """What is known of the owners of one job.

    `failing` has what a coordinator that is started again must know: for each owner that was not counted last
    the rounds missed in a row, the next rest, and the round that ends the last one.
    """

    def __init__(self, failing: Failing | None = None) -> None:
        self._records = {owner: _Record(*record) for owner, record in (failing or {}).items()}

    @property
    def failing(self) -> Failing:
        return {owner: astuple(record) for owner, record in self._records.items()}

    def cohort(self, round_number: int, present: Collection[str], floor: int) -> list[str]:
        """Who of those present is to be invited to this round, sorted."""
        out = {
            owner: record.back_in
            for owner, record in self._records.items()
            if owner in present and record.back_in > round_number
        }
        room = max(0, len(present) - floor)
        longest = sorted(out, key=lambda owner: (-out[owner], owner))
        return sorted(set(present) - set(longest[:room]))

    def note(
        self, round_number: int, counted: Collection[str], missed: Collection[str]
    ) -> Mapping[str, int]:
        """Take in how a training round ended; returns who is left out now, and the round that it is back in."""
        for owner in counted:
            self._records.pop(owner, None)
        begun = {}
        for owner in missed:
            record = self._records.setdefault(owner, _Record())
            record.missed += 1
            if record.missed >= MISSES:
                record.back_in = begun[owner] = round_number + record.rest + 1
                record.rest = min(2 * record.rest, LONGEST_REST)
        return begun
