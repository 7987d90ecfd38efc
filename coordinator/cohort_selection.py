"""Selects the next cohort: whose turn it is, who attends, and who is left out."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from cairn.errors import CairnError
from cairn.protocol.messages import Manifest
from coordinator.backoff import Backoff
from coordinator.groups import Sampling
from coordinator.needed_owners import Needed
from coordinator.owner_sessions import OwnerSessions, Waiting
from coordinator.schedule import Step


@dataclass(frozen=True)
class SelectedCohort:
    """Whom a round is to be opened with, or too few of them, and everybody who attends.

    `left_out` are of the cohort's group, attend and are not invited. `passed_over` are the groups whose turn it
    was first and of which too few attend, by their numbers.
    """

    cohort: list[str]
    present: frozenset[str]
    left_out: tuple[str, ...]
    passed_over: tuple[int, ...]


class CohortSelection:
    """Knows who took part in the rounds of one job."""

    def __init__(self, sampling: Sampling, seconds: float, sessions: OwnerSessions) -> None:
        self._sampling = sampling
        self._seconds = seconds
        self._sessions = sessions
        self.backoff = Backoff()
        # Who is likely to attend, by group.
        self._expected: dict[tuple[str, ...], AbstractSet[str]] = {}
        self._trained: tuple[str, ...] | None = None

    def next(self, step: Step, floor: int, waiting: Waiting) -> SelectedCohort:
        """Wait for as many owners of one group as `floor` says. Raises nothing where too few attend: see `check`."""
        turns = self._turns(step)
        present = frozenset(self._present(turns, floor, waiting))
        for group in turns:
            self._expected[group] = present & set(group)
        enough = (n for n, group in enumerate(turns) if len(self._expected[group]) >= floor)
        place = next(enough, 0)
        here = self._expected[turns[place]]
        cycle = self._sampling.cycle(step.round)
        cohort = self.backoff.cohort(cycle, here, floor)
        passed_over = tuple(1 + self._sampling.groups.index(group) for group in turns[:place])
        return SelectedCohort(cohort, present, tuple(sorted(here - set(cohort))), passed_over)

    def check(self, selected: SelectedCohort, needed: Needed) -> None:
        """Raise CairnError, which says who is missing, where no group has as many as are needed."""
        if len(selected.cohort) >= needed.owners:
            return
        groups = self._sampling.groups
        counts = [
            f"{len(selected.present & set(group))}{f' of group {n}' if len(groups) > 1 else ''}"
            for n, group in enumerate(groups, 1)
        ]
        missing = sorted({owner for group in groups for owner in group} - selected.present)
        raise CairnError(
            f"after gather_seconds = {self._seconds:g} only {' and '.join(counts)} of at least {needed.owners} owners"
            f" attend{needed.because}. Not there: {', '.join(missing)}. Start their owner nodes and run this again: the job goes"
            " on from its checkpoint"
        )

    def note(
        self,
        manifest: Manifest,
        missed: AbstractSet[str],
        doubted: AbstractSet[str] = frozenset(),
        *,
        released: bool,
    ) -> Mapping[str, int]:
        """Take in how a round ended; returns who is left out now, and the round that it is back in.

        Those `doubted` were missed and may come back in a moment.
        """
        group = self._sampling.group_of(manifest.cohort)
        counted = set(manifest.cohort) - missed
        self._expected[group] = counted | doubted
        if not manifest.trains:
            return {}
        cycle = self._sampling.cycle(manifest.round)
        self._trained = group
        back_in = self.backoff.note(cycle, counted if released else set(), missed)
        return {owner: self._sampling.first_round(cycle) for owner, cycle in back_in.items()}

    def was_trained_by(self, cohort: Sequence[str]) -> None:
        """The last release, which an earlier process of this coordinator has seen, is of this cohort."""
        self._trained = self._sampling.group_of(cohort)

    def _turns(self, step: Step) -> Sequence[tuple[str, ...]]:
        """The groups in the order in which they may take this step; who trained a release evaluates it."""
        turns = self._sampling.turns(step.round)
        if step.trains or self._trained is None:
            return turns
        return [self._trained, *(group for group in turns if group != self._trained)]

    def _present(
        self, turns: Sequence[tuple[str, ...]], floor: int, waiting: Waiting
    ) -> Sequence[str]:
        """Who attends. At first everybody is waited for; later, where a group is gone, another stands in."""
        seen = all(group in self._expected for group in turns)
        if seen and any(self._expected.values()):
            expected = self._expected[turns[0]]
            return self._sessions.wait_for_group(turns, expected, floor, self._seconds, waiting)
        everybody = [owner for group in turns for owner in group]
        return self._sessions.wait_for_all(everybody, self._seconds, waiting)
