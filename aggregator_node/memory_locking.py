"""Keeps the aggregator's memory, which holds owners' updates, out of swap: the disk must never have one.

All memory is locked, page by page as it is written to, so what is reserved and untouched takes none. That needs
CAP_IPC_LOCK or an unlimited RLIMIT_MEMLOCK: with a smaller limit, memory could not be had later, in a round.
A machine that hibernates writes its memory to the disk all the same.
"""

import ctypes
import mmap
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cairn.diagnostics.findings import Finding, ok, warning

_CURRENT, _FUTURE, _ON_FAULT = 1, 2, 4
_CURE = (
    "turn swap off (`swapoff -a`), or let the node lock its memory (LimitMEMLOCK=infinity in a systemd unit,"
    " `ulimits: {memlock: -1}` in a Compose file) or keep it from swapping (MemorySwapMax=0)"
)


def lock_memory() -> None:
    """Lock what this process has and will have, where it may."""
    with _judged_by_capability_or_no_limit():
        # Where it may not, `swap_findings` has said so.
        ctypes.CDLL(None).mlockall(_CURRENT | _FUTURE | _ON_FAULT)


def swap_findings(root: Path = Path("/")) -> list[Finding]:
    """Whether an update in memory can be written to a disk. `root` has /proc and /sys."""
    if not _may_swap(root):
        return [ok("memory", "the system has no swap for this node, so no update gets there")]
    if _may_lock():
        return [ok("memory", "it is locked, so no update gets into this machine's swap")]
    return [
        warning(
            "memory",
            "this machine swaps, and this account may not lock its memory: an owner's update can be written to"
            f" the disk; {_CURE}",
        )
    ]


def _may_lock() -> bool:
    page = mmap.mmap(-1, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    with _judged_by_capability_or_no_limit():
        may: bool = ctypes.CDLL(None).mlock(ctypes.c_void_p(address), mmap.PAGESIZE) == 0
    return may


@contextmanager
def _judged_by_capability_or_no_limit() -> Iterator[None]:
    """Inside, the limit is lifted if it can be, and else is 0, which only a capability goes beyond."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = hard == resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard if unlimited else 0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard if unlimited else soft, hard))


def _may_swap(root: Path) -> bool:
    swaps = _read(root / "proc/swaps").splitlines()[1:]  # below a line of titles
    return bool(swaps) and not any(limit == "0" for limit in _swap_limits(root))


def _swap_limits(root: Path) -> Iterator[str]:
    """What the control groups of this process allow it to swap, in the names of version 2."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            path = Path(line.removeprefix("0::"))
            for group in (path, *path.parents):
                yield _read(
                    root / "sys/fs/cgroup" / group.relative_to("/") / "memory.swap.max"
                ).strip()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # another system, or another version of it
        return ""
