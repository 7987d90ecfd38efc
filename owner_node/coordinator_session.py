"""Attends the coordinator: reads its stream, and has one worker that answers what it says, in order."""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

import structlog

from cairn.errors import (
    CairnError,
    CallerNotAllowed,
    InvalidMessage,
    NotFound,
    Unavailable,
    WrongState,
)
from cairn.transport.parsing import JOB_MESSAGE_BYTES
from cairn.transport.retry import retry_while_unavailable
from cairn.v1 import coordinator_pb2
from owner_node.coordinator_client import CoordinatorClient
from owner_node.participation import Participation
from owner_node.settings import OwnerSettings

log = structlog.get_logger()

_UNLISTED_PAUSE_SECONDS = 10.0
_PAUSE_SECONDS = 0.2  # between a stream that broke off and the next
_MOST_WAITING = 16  # events of a coordinator that says more than is worked off
_MOST_WAITING_BYTES = JOB_MESSAGE_BYTES  # of them all: an honest one invites to one round at a time
# No more is said for now: an outcome may have been lost.
_NOTHING = coordinator_pb2.AttendResponse()


class CoordinatorSession:
    """The conversation of one owner with its coordinator."""

    def __init__(
        self,
        settings: OwnerSettings,
        is_serving: Callable[[], bool],
        coordinator: CoordinatorClient,
        participation: Participation,
        stopping: threading.Event,
    ) -> None:
        self._settings = settings
        self._is_serving = is_serving
        self._coordinator = coordinator
        self._participation = participation
        self._stopping = stopping
        self._events = queue.Queue[coordinator_pb2.AttendResponse | None](_MOST_WAITING)
        self._waiting_bytes = 0  # of the events that lie in it
        self._counting = threading.Lock()
        self._asks = threading.Event()  # set while _NOTHING is left to the worker
        self._worker = threading.Thread(target=self._work, name="rounds", daemon=True)

    def run(self, *, once: bool) -> None:
        """Attend until told to stop; with `once` until a job has ended and its rounds are worked off.

        Raises Unavailable where the coordinator cannot be reached for too long.
        """
        self._worker.start()
        try:
            self._attend_again_and_again(once=once)
        finally:
            with suppress(queue.Full):  # then the worker sees by itself that this node stops
                self._events.put_nowait(None)

    def has_ended(self, within: float) -> bool:
        """Whether the worker is at nothing more, or will not be after so many seconds. For after `run`."""
        self._worker.join(within)
        return not self._worker.is_alive()

    def _attend_again_and_again(self, *, once: bool) -> None:
        reached_before = False
        while not self._stopping.is_set():
            try:
                retry_while_unavailable(
                    self._check_serving,
                    f"the coordinator at {self._settings.coordinator}",
                    self._settings.patience_seconds,
                    self._stopping,
                    reached_before=reached_before,
                )
                reached_before = True
                log.info("attending", coordinator=self._settings.coordinator)
                if self._attend() and once:
                    self._finish()
                    return
            except Unavailable:
                if not self._stopping.is_set():
                    raise
            except NotFound as error:  # its present job is not for us; a later one may be
                log.warning("the coordinator has no job for this owner", reason=str(error))
                self._stopping.wait(_UNLISTED_PAUSE_SECONDS)
            except (CallerNotAllowed, InvalidMessage, WrongState):  # waiting does not mend it
                raise
            except CairnError as error:  # such as an event that is too large to be received
                log.error("the coordinator's stream cannot be followed", reason=str(error))
                self._stopping.wait(_UNLISTED_PAUSE_SECONDS)
            self._stopping.wait(_PAUSE_SECONDS)

    def _check_serving(self) -> None:
        if not self._is_serving():
            raise Unavailable("it is stopping")

    def _attend(self) -> bool:
        """Follow the stream to its end; returns whether a job has ended with it."""
        ended = False
        try:
            for event in self._coordinator.attend(self._settings.federation):
                ended = self._heed(event) or ended
        except Unavailable as error:
            log.warning("the coordinator's stream broke off", trouble=str(error))
        if not self._asks.is_set():  # however often it breaks off while the worker is at a round
            self._asks.set()
            self._leave_to_worker(_NOTHING)
        return ended

    def _heed(self, event: coordinator_pb2.AttendResponse) -> bool:
        """Do what the event asks; returns whether it ends the job."""
        match event.WhichOneof("event"):
            case "invitation":
                self._leave_to_worker(event)
            case "outcome":
                self._participation.end(
                    event.outcome
                )  # at once: the worker may be at this very round
                self._leave_to_worker(event)
            case "finished":
                ended = event.finished
                log.info("the job has ended", job=ended.job, completed=ended.completed)
                return True
            case _:
                log.warning("the coordinator sent an event this version does not know")
        return False

    def _leave_to_worker(self, event: coordinator_pb2.AttendResponse) -> None:
        try:
            self._put(event)
        except queue.Full:
            if event is _NOTHING:
                self._asks.clear()
            log.warning("the coordinator says more than this owner can work off; left out")

    def _put(self, event: coordinator_pb2.AttendResponse) -> None:
        """Raises queue.Full where that is more than may wait, by number or by size."""
        with self._counting:
            if self._waiting_bytes + event.ByteSize() > _MOST_WAITING_BYTES:
                raise queue.Full
            self._events.put_nowait(event)
            self._waiting_bytes += event.ByteSize()

    def _next(self) -> coordinator_pb2.AttendResponse | None:
        event = self._events.get()
        if event is not None:
            with self._counting:
                self._waiting_bytes -= event.ByteSize()
        return event

    def _work(self) -> None:
        while True:
            event = self._next()
            if event is None or self._stopping.is_set():
                return
            match event.WhichOneof("event"):
                case "invitation":
                    self._participation.take_part(event.invitation)
                case "outcome":
                    self._participation.take_in(event.outcome)
                case _:
                    self._asks.clear()
                    self._participation.settle()

    def _finish(self) -> None:
        """Wait until the worker is through with what was said: a coordinator cannot cut a round short."""
        told = False
        while self._worker.is_alive() and not self._stopping.is_set():
            if told:
                self._worker.join(_PAUSE_SECONDS)
                continue
            with suppress(queue.Full):
                self._events.put(None, timeout=_PAUSE_SECONDS)
                told = True
