"""Does the work of one round on this owner's data, and pushes what comes of it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from cairn.runtime.failpoints import failpoint
from cairn.tasks.loader import TaskFailed
from owner_node.deadline import Deadline
from owner_node.invitation import Invited
from owner_node.record_privacy import PrivacyAccount, RoundSpending
from owner_node.training.kept_tensors import KeptTensors
from owner_node.training.supervisor import PrivateWork, Trained, TrainingSupervisor, Work
from owner_node.upload import Uploader
from owner_node.work_time import WorkTime


@dataclass(frozen=True)
class Progress:
    """Whether a round is still under way. `check` raises where it is not, or where this node is to stop."""

    is_dropped: Callable[[], bool]
    check: Callable[[], None]


class LocalWork:
    """`seconds` is the time that the work takes, where the owner's file says it: then it goes on to its end,
    whatever becomes of the round, and what fails in it is a failure.
    """

    def __init__(
        self,
        uploader: Uploader,
        kept: KeptTensors,
        privacy: PrivacyAccount,
        stopping: threading.Event,
    ) -> None:
        self._uploader = uploader
        self._kept = kept
        self._privacy = privacy
        self._stopping = stopping

    def work(
        self,
        invited: Invited,
        process: TrainingSupervisor,
        deadline: Deadline,
        seconds: float | None,
        progress: Progress,
    ) -> None:
        """Raises Declined, TaskFailed, NotRecorded, or what `progress` raises where the round is over."""
        spending = self._privacy.open(invited)
        order = self._order(invited, process, progress, spending)
        work_time = WorkTime(seconds, process.cancel, self._stopping)
        work_time.check_fits(deadline.earliest)

        def may_leave() -> None:
            work_time.wait()
            progress.check()

        with work_time:
            trained = _done(order, process, progress if seconds is None else None, spending)
            failpoint("owner.train.done")
            progress.check()
            if order.kept is not None and invited.manifest.trains:
                self._kept.write(invited, order.kept, process.kept_buffer(order.kept))
            base = process.base_buffer(invited.job.schema)
            self._uploader.push(invited, base, trained, deadline.latest, may_leave)

    def _order(
        self,
        invited: Invited,
        process: TrainingSupervisor,
        progress: Progress,
        spending: RoundSpending | None,
    ) -> Work:
        """What the process is to do, once what the task keeps lies in its memory."""
        trains, statistics = invited.manifest.trains, invited.job.statistics
        try:
            kept = process.model(progress.is_dropped).kept if statistics is None else None
        except TaskFailed:
            progress.check()
            raise
        return Work(
            job=invited.job.name,
            round=invited.manifest.round,
            phase="train" if trains else "evaluate",
            settings=invited.job.settings,
            schema=invited.job.schema,
            in_place=trains and not self._uploader.needs_base(invited),
            gradients=invited.job.aggregation.are_gradients,
            statistics=statistics,
            kept=kept,
            begins_with_kept=kept is not None
            and self._kept.load(invited, kept, process.kept_buffer(kept)),
            private=None
            if spending is None
            else PrivateWork(spending.budget.noise, spending.budget.clip, spending.ask),
        )


def _done(
    order: Work,
    process: TrainingSupervisor,
    progress: Progress | None,
    spending: RoundSpending | None,
) -> Trained:
    """Train or evaluate, to the end of it or of the round whose progress this is."""
    try:
        trained = (
            process.run(order) if progress is None else process.run(order, progress.is_dropped)
        )
    except TaskFailed:
        if progress is not None:
            progress.check()
        if spending is not None:
            spending.check_refusal()
        raise
    if spending is not None:
        spending.check()
    return trained
