"""A federation from Python, for a model owner's script or notebook: what `cairn.connect` returns.

    federation = cairn.connect("fed/coordinator.toml")
    job = federation.job("tutorial", model=nn.Linear(2, 1), rounds=10, settings={"lr": 0.1, "steps": 5})
    for release in job:                       # one averaged round at a time
        print(release.round, release.metrics)
    model = job.model                         # an nn.Module with the averaged weights

The coordinator of the job works in threads of this process, and does what the command `coordinator run` does: the same
job's file, as arguments; the same folder for the run; the same sentences where something is wrong.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from cairn.errors import UsageError
from cairn.protocol.limits import MIN_COHORT
from cairn.runtime.logging import start_logging
from coordinator.api.given_model import GivenModel
from coordinator.api.job import FederatedJob
from coordinator.settings import CoordinatorSettings, JobSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

_USUAL_FLOOR = 3


def connect(config: str | Path) -> "Federation":
    """Read a coordinator's TOML file, as `cairn init` writes it. Nothing is dialled before a job begins.

    Raises UsageError that names the file and the key for a mistake in it.
    """
    settings = CoordinatorSettings.load(Path(config))
    if not structlog.is_configured():
        # What went well is in the loop.
        start_logging(least=logging.WARNING, federation=settings.federation, node=settings.name)
    return Federation(settings)


class Federation:
    """Where a model owner runs jobs: an aggregator, and the owners that its coordinator invites."""

    def __init__(
        self, settings: CoordinatorSettings, runs: Path = Path("runs"), task: str | None = None
    ) -> None:
        """`task` is the one that the owners have, where that is known."""
        self._settings = settings
        self._runs = runs
        self._task = task

    @property
    def owners(self) -> tuple[str, ...]:
        """Whom a job invites that does not say: those of the coordinator's file."""
        return self._settings.owners

    def job(
        self,
        name: str,
        *,
        model: "nn.Module | Mapping[str, Tensor] | str | Path | None" = None,
        rounds: int | None = None,
        task: str | None = None,
        owners: Sequence[str] | None = None,
        floor: int | None = None,
        settings: Mapping[str, float] | None = None,
        out: str | Path | None = None,
        **keys: Any,
    ) -> FederatedJob:
        """Describe a job; it begins when it is iterated over, or run.

        `model` is what it starts from: a module, of which the whole state_dict is exchanged; the tensors that the task
        exchanges, by name; or a path, as in a job's file. `task` is the name under which the owners have the task, by
        default the job's; `owners` are by default those of the coordinator's file, and `floor`, the fewest of them in
        a round, 3 or as many as there are. `settings` are the numbers handed to the task. `out` is the run's folder,
        by default runs/ and the job's name. All other keys are those of a job's file (docs/jobs.md), such as
        `weighting`, `evaluate`, `rule={"name": "norm_bounded_mean", "norm": 1.0}` or `best`. A job of `statistics` has
        neither a model nor rounds.

        Raises UsageError that names the key for a mistake, as the command does.
        """
        invited = list(owners if owners is not None else self.owners)
        folder = Path(out) if out is not None else self._runs / name
        first = GivenModel(model, folder)
        given = {
            "rounds": rounds,
            "settings": None if settings is None else dict(settings),
            "model": None if model is None else first.path,
        }
        values = {
            "name": name,
            "task": task or name,
            "owners": invited,
            "floor": floor or max(MIN_COHORT, min(_USUAL_FLOOR, len(invited))),
            **{key: value for key, value in given.items() if value is not None},
            **keys,
        }
        job = JobSettings.of(values, f"the job {name}")
        if self._task not in {None, job.task}:
            raise UsageError(
                f'the job {name}: task = "{job.task}", which no owner here has; write task="{self._task}"'
            )
        return FederatedJob(job, self._settings, folder, first, self.check)

    def check(self) -> None:
        """Raise CairnError where a node has ended that this process has started; here there is none."""
