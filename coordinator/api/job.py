"""A job from Python: a loop over its releases, each of which is an average. See `coordinator.api.federation`."""

import json
import queue
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cairn.diagnostics.findings import Finding
from cairn.errors import CairnError, UsageError
from cairn.identity.signing_keys import parse_signing_key_text
from cairn.verify.verify import Evidence, verify
from coordinator.api.given_model import GivenModel
from coordinator.console import show
from coordinator.events import Event, JobFinished, JobStarted, Observer, RoundFinished
from coordinator.node import Coordinator
from coordinator.settings import CoordinatorSettings, JobSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

_LOOK_EVERY_SECONDS = 1.0  # whether the nodes that were started here are there still


class FederatedJob:
    """A job and its run, which is kept in `folder`. To iterate over it again goes on where it stands."""

    def __init__(
        self,
        job: JobSettings,
        settings: CoordinatorSettings,
        folder: Path,
        first: GivenModel,
        check: Callable[[], None],
    ) -> None:
        self.folder = folder
        self.settings = job
        self._coordinator = settings
        self._first = first
        self._check = check

    def __iter__(self) -> Generator[RoundFinished, None, None]:
        """Run the job, and give every release as it comes: its `round`, `metrics`, `contributors`, `seconds`.

        To leave the loop, or to interrupt it, ends the open round in good order; a loop over the same job goes on with
        the next. Raises UsageError for a mistake, and CairnError where the job could not be ended, with the
        sentences of the command.
        """
        if not (self.folder / "checkpoint.json").exists():
            self._first.write()
        self._check()
        told: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        node = Coordinator(self.settings, self._coordinator, self.folder, tell=told.put)
        observe = _observer(self.settings)
        node.start()
        threading.Thread(target=_tell_end, args=(node, told), daemon=True).start()
        try:
            while (event := self._next(told)) is not None:
                observe(event)
                if isinstance(event, RoundFinished):
                    yield event
            node.wait()
        finally:
            node.stop()
            with suppress(CairnError):  # it was raised above, or says that it was stopped
                node.wait()

    def run(self) -> "FederatedJob":
        """Run the job to its end; returns itself."""
        for _ in self:
            pass
        return self

    @property
    def history(self) -> list[dict[str, Any]]:
        """What is known of each round so far: round, contributors, metrics, seconds and more; averages only."""
        path = self.folder / "history.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    @property
    def state(self) -> "dict[str, Tensor]":
        """The tensors of the last release, by name; before the first, those that the job starts from."""
        from safetensors.torch import load_file

        return load_file(self._check_begun())

    @property
    def model(self) -> "nn.Module":
        """A module with the values of the last release. The module that the job was given is left as it was.

        Raises UsageError before the job has begun, and where it was given no module.
        """
        return self._first.with_values(self.state)

    @property
    def statistics(self) -> dict[str, Any]:
        """What a job of statistics has counted, by column (docs/statistics.md). Raises UsageError where there is nothing yet."""
        path = self.folder / "statistics.json"
        if not path.exists():
            raise UsageError(
                f"the job {self.settings.name} has counted nothing: run it, with statistics={{...}}"
            )
        columns: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["columns"]
        return columns

    def verify(self) -> list[Finding]:
        """Check the run offline, as `cairn verify` does: that it is as the aggregator signed and recorded it."""
        self._check_begun()
        key = parse_signing_key_text(self._coordinator.aggregator_signing_key)
        return verify(self.folder, Evidence(key))

    def _check_begun(self) -> Path:
        """Return where its model is. Raises UsageError before the job has begun."""
        path = self.folder / "model.safetensors"
        if not path.exists():
            raise UsageError(
                f"the job {self.settings.name} has not begun: iterate over it, or run it"
            )
        return path

    def _next(self, told: "queue.SimpleQueue[Event | None]") -> Event | None:
        while True:
            with suppress(queue.Empty):
                return told.get(timeout=_LOOK_EVERY_SECONDS)
            self._check()


def _tell_end(node: Coordinator, told: "queue.SimpleQueue[Event | None]") -> None:
    with suppress(Exception):  # whoever iterates is told
        node.wait()
    told.put(None)


def _observer(job: JobSettings) -> Observer:
    """In a notebook a view that follows the job; elsewhere, what a person should know beside the releases."""
    from coordinator.api.live_view import LiveView, is_notebook

    return LiveView(job.name) if is_notebook() else _show_what_went_wrong


def _show_what_went_wrong(event: Event) -> None:
    if not isinstance(event, JobStarted | RoundFinished | JobFinished):
        show(event)
