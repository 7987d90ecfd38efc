"""Where a job is, and what its history will say of the round that is under way. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cairn.v1 import round_pb2 as pb
from coordinator.job import Base
from coordinator.run_directory import Checkpoint
from coordinator.schedule import Schedule


@dataclass
class Line:
    """What the history will say of a round, once its evaluation is in.

    `evaluation` is "released", or the word of the reason why there is none; None where nothing is evaluated. `best` is
    the round of the best release so far, and `epsilon` what was told of an owner up to this release, as it states.
    """

    round: int
    contributors: int
    group: int | None
    metrics: dict[str, float]
    left_out: list[str]
    seconds: float = 0.0
    evaluation: str | None = None
    best: int | None = None
    epsilon: float | None = None

    @classmethod
    def of(
        cls,
        statement: pb.ReleaseStatement,
        seconds: float,
        group: int | None,
        left_out: Sequence[str] = (),
    ) -> "Line":
        """What a statement of a training says of it."""
        return cls(
            round=statement.round,
            contributors=statement.contributors,
            group=group,
            metrics=dict(sorted(statement.metrics.items())),
            left_out=list(left_out),
            seconds=seconds,
            epsilon=statement.privacy.epsilon if statement.HasField("privacy") else None,
        )

    def add_evaluation(self, measured: Mapping[str, float], seconds: float) -> None:
        """The release was evaluated, with these metrics."""
        self.evaluation = "released"
        self.metrics = dict(sorted({**self.metrics, **measured}.items()))
        self.seconds += seconds


@dataclass
class Standing:
    """Where the job is. `measured` has the metrics of the last release's own evaluation."""

    checkpoint: Checkpoint
    base: Base
    schedule: Schedule
    line: Line | None = None
    measured: Mapping[str, float] | None = None
