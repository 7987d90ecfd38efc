"""Has the work on the data take one time in every round, where the owner's file says which (`work_seconds`).

Whoever chooses the model can choose on what the running time depends, and whoever opens and aborts rounds
can see when an owner goes on. So what came of the work, be it an update or a failure, leaves at one moment after
the base was there. Work that is not done by then is ended, and is a failure that counts. A round that others
end meanwhile changes nothing: the work goes on, and nothing else is answered before that moment.

That is the fixed schedule of "Predictive black-box mitigation of timing channels" (Askarov, Zhang, Myers, CCS
2010), with the owner's own limit on failures in place of a longer schedule after each.
"""

import threading
import time
from collections.abc import Callable
from typing import Self

from cairn.tasks.loader import TaskFailed
from cairn.v1 import round_pb2 as pb
from owner_node.invitation import Declined


class WorkTime:
    """The work on the data of one round is done inside. Without `seconds` it takes as long as it takes.

    `cancel` ends a training that is under way, from another thread.
    """

    def __init__(
        self, seconds: float | None, cancel: Callable[[], object], stopping: threading.Event
    ) -> None:
        self._seconds = seconds
        self._stopping = stopping
        self._ends = time.monotonic() + (seconds or 0)
        self._timer = threading.Timer(seconds or 0, cancel)
        self._timer.daemon = True

    def check_fits(self, deadline: float) -> None:
        """Raise Declined where the round may be over, at this monotonic moment, before the work is."""
        if self._seconds is not None and self._ends > deadline:
            raise Declined(
                f"the round ends in {max(0, deadline - time.monotonic()):.0f} s, and this owner's file has the work"
                f" take {self._seconds:g} (work_seconds): the job's deadline_seconds must be larger",
                pb.REASON_SETTING_REFUSED,
            )

    def wait(self) -> None:
        """Is called before anything leaves. Raises Declined where the time is over, or this node is to stop."""
        if self._seconds is None:
            return
        if time.monotonic() >= self._ends:
            raise self._not_done()
        self._rest()
        if self._stopping.is_set():
            raise Declined("this node is told to stop", pb.REASON_STOPPING)

    def __enter__(self) -> Self:
        if self._seconds is not None:
            self._timer.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if self._seconds is None:
            return
        self._timer.cancel()
        late = time.monotonic() >= self._ends
        self._rest()
        if isinstance(error, TaskFailed) and late:
            raise self._not_done() from error

    def _rest(self) -> None:
        self._stopping.wait(max(0, self._ends - time.monotonic()))

    def _not_done(self) -> Declined:
        return Declined(
            f"the work was not done after the {self._seconds:g} s that this owner's file has it take (work_seconds)",
            pb.REASON_DEADLINE,
        )
