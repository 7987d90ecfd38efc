"""Has the C library keep the memory that is freed, instead of handing it back to the kernel each time.

gRPC and Python allocate and free a buffer for every chunk. glibc returns such a buffer to the kernel at
once, and takes it again, page by page, for the next: that costs more than the copies do. The settings are
those of mallopt(3); where there is no glibc they are left alone.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


def keep_freed_memory() -> None:
    """Call it once, before gRPC or PyTorch are imported and before any thread is started."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    # Also a large tensor of a model that is built anew each round.
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TOP_PAD, 16 << 20)
