"""Reads the specifications of registered jobs, one at a time and each once: a large one takes half a second.

A few are kept, up to a number of bytes: one of 16 MiB is a million objects, which Python's collector looks through
again and again while everybody waits.
"""

import threading

from cairn.protocol.limits import MAX_JOB_SPEC_BYTES
from cairn.protocol.messages import JobSpec, job_spec_from_bytes

_KEPT = 8
_KEPT_BYTES = MAX_JOB_SPEC_BYTES  # of all that are kept; the last one always is
_reading = threading.Lock()
_kept: dict[bytes, JobSpec] = {}  # the last used at the end


def spec_of(body: bytes) -> JobSpec:
    """The job that these bytes specify; raises as `job_spec_from_bytes` does.

    Call it with no other lock held: the owners' calls must not wait for it.
    """
    with _reading:
        spec = _kept.pop(body, None) or job_spec_from_bytes(body)
        _kept[body] = spec
        while len(_kept) > _KEPT or (len(_kept) > 1 and sum(map(len, _kept)) > _KEPT_BYTES):
            del _kept[next(iter(_kept))]
        return spec
