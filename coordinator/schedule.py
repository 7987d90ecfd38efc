"""What comes next in a job: the order of its rounds, and when it is given up. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cairn.errors import CairnError
from cairn.protocol.words import reason_word
from cairn.v1 import round_pb2 as pb
from coordinator.causes import commonest

MAX_ABORTS_IN_A_ROW = 3


@dataclass(frozen=True)
class Step:
    """One trip: a round's training, or the evaluation of its release."""

    round: int
    phase: "pb.Phase"

    @property
    def trains(self) -> bool:
        return self.phase == pb.PHASE_TRAIN


@dataclass
class Schedule:
    """A job's way through its rounds.

    `rounds` is how many releases it is to have and `released` how many it has; `opened` is the number
    of the last training round that was opened. An aborted round's number is burnt, so the numbers may
    run ahead of the releases. `ends_early` is set where the releases there are shall be all.
    """

    rounds: int
    evaluates: bool
    opened: int = 0
    released: int = 0
    ends_early: bool = False
    _evaluation_due: int = 0
    _aborts: int = field(default=0)
    _excluded: list[pb.Exclusion] = field(default_factory=list)  # in these aborted rounds

    def resume_evaluation(self, round_number: int) -> None:
        """The release of this round was collected, but its evaluation is not done."""
        if self.evaluates:
            self._evaluation_due = round_number

    def next(self) -> Step | None:
        """The step to take now, or None when the job is done."""
        if self._evaluation_due:
            return Step(self._evaluation_due, pb.PHASE_EVALUATE)
        if self.released < self.rounds and not self.ends_early:
            return Step(self.opened + 1, pb.PHASE_TRAIN)
        return None

    @property
    def awaits_evaluation(self) -> bool:
        """Whether the last release is still to be evaluated."""
        return self._evaluation_due != 0

    def was_released(self, step: Step) -> None:
        self._aborts = 0
        self._excluded.clear()
        if step.trains:
            self.opened = step.round
            self.released += 1
            self._evaluation_due = step.round if self.evaluates else 0
        else:
            self._evaluation_due = 0

    def was_aborted(
        self, step: Step, reason: "pb.Reason", exclusions: Sequence[pb.Exclusion] = ()
    ) -> None:
        """Note an aborted round, in which these owners were not counted. Raises CairnError when the job is to be given up.

        An evaluation is not repeated: its round goes without, and the job goes on however many there are.
        """
        if not step.trains:
            self._evaluation_due = 0
            return
        self._aborts += 1
        self._excluded += exclusions
        self.opened = step.round
        if self._aborts >= MAX_ABORTS_IN_A_ROW:
            left = "that of the last release" if self.released else "as it was at the start"
            cause = commonest(self._excluded)
            why = f". The commonest cause was {cause}" if cause else ""
            raise CairnError(
                f"{self._aborts} rounds in a row ended without a release, the last because of"
                f" {reason_word(reason)}: the job is given up. The model is {left}{why}"
            )
