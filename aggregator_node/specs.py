"""Reads the specifications of registered jobs, one at a time and each once: a large one takes half a second."""

import threading
from functools import lru_cache

from cairn.messages import JobSpec, job_spec_from_bytes

_KEPT = 8
_reading = threading.Lock()


def spec_of(body: bytes) -> JobSpec:
    """The job that these bytes specify; raises as `job_spec_from_bytes` does.

    Call it with no other lock held: the owners' calls must not wait for it.
    """
    with _reading:
        return _read(body)


@lru_cache(maxsize=_KEPT)
def _read(body: bytes) -> JobSpec:
    return job_spec_from_bytes(body)
