"""Keeps this owner's place in a round while it works: renews the lease until told to stop."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from cairn.errors import CairnError, Unavailable

log = structlog.get_logger()

_RENEWALS_A_LEASE = 3


class Lease:
    """Renews in a thread of its own. `lost` is called once when the round has ended without us."""

    def __init__(
        self, renew: Callable[[], object], seconds: float, lost: Callable[[], None]
    ) -> None:
        self._renew = renew
        self._pause = seconds / _RENEWALS_A_LEASE
        self._lost = lost
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()

    def _run(self) -> None:
        while not self._done.wait(self._pause):
            try:
                self._renew()
            except Unavailable as error:
                log.warning("the lease could not be renewed, trying again", trouble=str(error))
            except CairnError as error:
                if not self._done.is_set():
                    log.warning("the round has ended without this owner", reason=str(error))
                    self._lost()
                return
