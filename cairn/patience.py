"""Waits for a peer that cannot be reached: visibly, with growing pauses, and not for ever."""

import threading
from collections.abc import Callable
from typing import TypeVar

import structlog
from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    stop_when_event_set,
    wait_random_exponential,
)
from tenacity.nap import sleep_using_event

from cairn.errors import Unavailable

T = TypeVar("T")
log = structlog.get_logger()

_LONGEST_PAUSE_SECONDS = 5
_SILENT_SECONDS = 5.0  # nodes that are started together need a moment to find each other


def patiently(call: Callable[[], T], peer: str, seconds: float, stopping: threading.Event) -> T:
    """Repeat `call`, which must be safe to repeat, while it raises Unavailable.

    Raises Unavailable, with the last trouble, after `seconds` or once `stopping` is set. Any other
    error passes at once.
    """
    tell_at = _SILENT_SECONDS

    def tell(state: RetryCallState) -> None:
        nonlocal tell_at
        waited = state.seconds_since_start or 0.0
        if waited < tell_at:
            return
        tell_at = 2 * waited  # a log is not for counting
        trouble = state.outcome.exception() if state.outcome else None
        log.warning(
            "cannot reach a peer, trying again",
            peer=peer,
            trouble=str(trouble),
            waited_seconds=round(waited, 1),
            patience_seconds=seconds,
        )

    try:
        return Retrying(
            retry=retry_if_exception_type(Unavailable),
            wait=wait_random_exponential(multiplier=0.2, max=_LONGEST_PAUSE_SECONDS),
            stop=stop_after_delay(seconds) | stop_when_event_set(stopping),
            sleep=sleep_using_event(stopping),
            before_sleep=tell,
        )(call)
    except RetryError as error:
        trouble = error.last_attempt.exception()
        if stopping.is_set():
            raise Unavailable(f"stopped while {peer} could not be reached: {trouble}") from None
        raise Unavailable(f"gave up on {peer} after {seconds:g} seconds: {trouble}") from None
