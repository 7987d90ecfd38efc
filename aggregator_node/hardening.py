"""Has the C library overwrite memory when it is freed, so that no update outlives its round there.

Python cannot clear an immutable object, and gRPC's own buffers are out of its reach. glibc can: with
`glibc.malloc.perturb` it overwrites what is freed, unless it keeps it in the caches of its threads, which
are turned off, or Python does in its own pools, which are bypassed. All of it is read when a process
starts (https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html).
"""

import os
import sys

_TUNABLES = "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0"
ERASING = {
    "GLIBC_TUNABLES": _TUNABLES,
    "PYTHONMALLOC": "malloc",
}  # the environment of such a process


def erase_freed_memory() -> bool:
    """Start this process anew with an allocator that erases, unless that was done.

    Call it before anything is imported that takes long, and before any thread is started. Returns
    False where nothing is erased: another C library than glibc, or `python -E` or `-I`.
    """
    if sys.flags.ignore_environment:  # Python would go on with its own pools
        return False
    if "CS_GNU_LIBC_VERSION" not in os.confstr_names or not os.confstr("CS_GNU_LIBC_VERSION"):
        return False
    given = os.environ.get("GLIBC_TUNABLES", "")
    if not given.endswith(_TUNABLES) or os.environ.get("PYTHONMALLOC") != "malloc":
        wanted = {**ERASING, "GLIBC_TUNABLES": f"{given}:{_TUNABLES}".lstrip(":")}
        # The same program with the same arguments; nothing else would read these settings.
        os.execve(sys.executable, sys.orig_argv, os.environ | wanted)  # noqa: S606 - no shell wanted
    return True


def harden_process(*, erases: bool) -> None:
    """Keep what this process holds out of core dumps and swap. Warn where freed memory is not overwritten."""
    # Imported here, because `erase_freed_memory` may start the process anew before.
    import structlog

    from aggregator_node.memory_locking import lock_memory
    from cairn.runtime.process import forbid_core_dumps

    forbid_core_dumps()
    lock_memory()
    if not erases:
        structlog.get_logger().warning(
            "freed memory is not overwritten: this system's C library cannot do that"
        )
