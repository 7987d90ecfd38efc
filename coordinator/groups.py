"""Divides a job's owners into fixed groups, and decides whose turn a round is. Pure.

Cohorts that change freely from round to round tell of single owners sooner or later: whoever knows that the model
moved little between two rounds subtracts their averages. Owners that come and go as one group stay together
in every difference. All is decided by SHA-256 over the job's seed, its name and the names of its owners, so
another process, machine or version of Python decides the same.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from math import ceil

from cairn.protocol.cohorts import Groups


def group_count(owners: int, fraction: float, floor: int) -> int:
    """The most groups of which each has at least this fraction of the owners, and the floor."""
    least = ceil(Fraction(str(fraction)) * owners)  # the decimal as it was written
    return owners // max(least, floor)


def groups_of(owners: Collection[str], count: int, seed: int, job: str) -> Groups:
    """`count` groups of the owners, as even as can be; the same for whatever order they are given in."""
    dealt = sorted(owners, key=lambda owner: _rank(seed, job, "owner", owner))
    return tuple(sorted(tuple(sorted(dealt[first::count])) for first in range(count)))


@dataclass(frozen=True)
class Sampling:
    """Whose turn it is in a job. `groups` has at least one; they are numbered from 1 on."""

    groups: Groups
    seed: int
    job: str

    def turns(self, round_number: int) -> Sequence[tuple[str, ...]]:
        """All groups, the one whose turn the round is first, then those that may stand in for it.

        A cycle has as many rounds as there are groups, and is the turn of each once.
        """
        cycle, place = divmod(round_number - 1, len(self.groups))

        def rank(group: tuple[str, ...]) -> bytes:
            return _rank(self.seed, self.job, "turn", str(cycle), group[0])

        order = sorted(self.groups, key=rank)
        return order[place:] + order[:place]

    def cycle(self, round_number: int) -> int:
        """The number of the cycle that the round belongs to: 1, 2, 3 and so on."""
        return 1 + (round_number - 1) // len(self.groups)

    def first_round(self, cycle: int) -> int:
        """The number of a cycle's first round."""
        return 1 + (cycle - 1) * len(self.groups)

    def group_of(self, cohort: Sequence[str]) -> tuple[str, ...]:
        """The group that a cohort, which is within one, belongs to."""
        return next(group for group in self.groups if cohort[0] in group)

    def number_of(self, cohort: Sequence[str]) -> int | None:
        """The number of a cohort's group; None where there is but one."""
        return 1 + self.groups.index(self.group_of(cohort)) if len(self.groups) > 1 else None


def _rank(seed: int, job: str, *words: str) -> bytes:
    """Where something stands in an order that is random, and the same for everybody."""
    return sha256("\0".join((str(seed), job, *words)).encode()).digest()
