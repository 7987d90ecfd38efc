"""Takes large memory from the system, zeroed and page by page as it is written to."""

import mmap
from contextlib import suppress


def anonymous(nbytes: int) -> mmap.mmap:
    """Private memory of this size, at least one byte, in large pages where the kernel has them."""
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a page fault for 2 MiB instead of 4 KiB is not to be had here
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
