"""Waits for a peer that cannot be reached: visibly, with growing pauses, and not for ever."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog
from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception_type,
    wait_random_exponential,
)
from tenacity.nap import sleep_using_event

from cairn.errors import PeerUntrusted, Unavailable
from cairn.runtime.timeouts import IDLE_SECONDS

T = TypeVar("T")
log = structlog.get_logger()

_LONGEST_PAUSE_SECONDS = 1.0
_QUIET_PAUSE_SECONDS = 5.0  # nodes that are started together need a moment to find each other
# Three nodes that import PyTorch on a busy machine take more than half of it.
_STARTING_SECONDS = 2 * IDLE_SECONDS
# Certificates are renewed on one machine and then on the other; what lasts longer is a mistake.
_DISTRUSTED_SECONDS = 2 * IDLE_SECONDS
_DISTRUSTED_TIMES = 10  # a peer that stops may look like one that refuses us, once
# A peer that stops now and then is none that refuses us; these many calls, however slow, fit in.
_DISTRUSTED_WITHIN_SECONDS = _DISTRUSTED_TIMES * IDLE_SECONDS


def retry_while_unavailable(
    call: Callable[[], T],
    peer: str,
    seconds: float,
    stopping: threading.Event,
    *,
    reached_before: bool = True,
) -> T:
    """Repeat `call`, which must be safe to repeat, while it raises Unavailable.

    A peer that was not `reached_before` may still be starting: that is logged once, and is a warning only
    where it lasts.

    Raises Unavailable, with the last trouble, after `seconds` of trouble or once `stopping` is set. Where
    it was PeerUntrusted again and again for a minute it raises that, however long `seconds` are. Any other error
    passes at once.
    """
    trouble = _Trouble(call, peer, seconds, stopping, reached_before=reached_before)
    try:
        return Retrying(
            retry=retry_if_exception_type(Unavailable),
            wait=wait_random_exponential(multiplier=0.1, max=_LONGEST_PAUSE_SECONDS),
            stop=trouble.is_too_long,
            sleep=sleep_using_event(stopping),
            before_sleep=trouble.tell,
        )(trouble.timed_call)
    except RetryError as error:
        last = error.last_attempt.exception()
        if stopping.is_set():
            raise Unavailable(f"stopped while {peer} could not be reached: {last}") from None
        if trouble.lasts:
            seconds = min(seconds, _DISTRUSTED_SECONDS)
            raise PeerUntrusted(f"gave up on {peer} after {seconds:g} seconds: {last}") from None
        raise Unavailable(f"gave up on {peer} after {seconds:g} seconds: {last}") from None


class _Trouble(Generic[T]):
    """How long a peer has not been reached, counted from the last call that did reach it."""

    def __init__(
        self,
        call: Callable[[], T],
        peer: str,
        seconds: float,
        stopping: threading.Event,
        *,
        reached_before: bool,
    ) -> None:
        self._call = call
        self._peer = peer
        self._seconds = seconds
        self._stopping = stopping
        self._reached = reached_before
        self._begun = self._since = time.monotonic()
        self._distrusted: list[float] = []  # when
        self._tell_at = _QUIET_PAUSE_SECONDS

    def timed_call(self) -> T:
        self._begun = time.monotonic()
        return self._call()

    def is_too_long(self, state: RetryCallState) -> bool:
        now = time.monotonic()
        if now - self._begun > IDLE_SECONDS:  # then it had reached its peer: patience begins anew
            self._since = now
            self._reached = True
            self._tell_at = _QUIET_PAUSE_SECONDS
            self._distrusted = []
        while self._distrusted and now - self._distrusted[0] > _DISTRUSTED_WITHIN_SECONDS:
            self._distrusted.pop(0)
        if isinstance(_last(state), PeerUntrusted):
            self._distrusted.append(now)
        return now - self._since >= self._seconds or self.lasts or self._stopping.is_set()

    @property
    def lasts(self) -> bool:
        """Whether no more waiting will mend it."""
        times = self._distrusted
        return len(times) >= _DISTRUSTED_TIMES and times[-1] - times[0] >= _DISTRUSTED_SECONDS

    def tell(self, state: RetryCallState) -> None:
        waited = time.monotonic() - self._since
        if waited < self._tell_at:
            return
        trouble = _last(state)
        new = not self._reached and not isinstance(trouble, PeerUntrusted)
        if new and waited < _STARTING_SECONDS:
            self._tell_at, tell = _STARTING_SECONDS, log.info
        else:
            self._tell_at, tell = 2 * waited, log.warning  # a log is not for counting
        tell(
            "cannot reach a peer, trying again",
            peer=self._peer,
            trouble=str(trouble),
            waited_seconds=round(waited, 1),
            patience_seconds=min(self._seconds, _DISTRUSTED_SECONDS)
            if self._distrusted
            else self._seconds,
        )


def _last(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
