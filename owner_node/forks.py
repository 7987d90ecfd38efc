"""Gives a process that the task forks off a model of its own, as it has everything else of its own.

A task's model lies in memory that is shared with the owner's process, and a fork would share it too: what a
worker of a DataLoader does to its model would be trained. So the child maps the same pages anew, to be copied
where it writes. Nothing is copied at the fork. Where it has not written, it may see what is trained meanwhile.
"""

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_MAP_FIXED = 0x10  # on Linux, macOS and the BSDs; Python's mmap has no name for it


@dataclass(frozen=True)
class _Place:
    """Where a file is mapped in this process."""

    address: int
    nbytes: int
    descriptor: int


_shared: "weakref.WeakKeyDictionary[mmap.mmap, _Place]" = weakref.WeakKeyDictionary()


def keep_from_forks(mapped: mmap.mmap, descriptor: int) -> None:
    """Have this mapping of a file be private in every process that is forked off, while it lives."""
    own = os.dup(descriptor)
    weakref.finalize(mapped, os.close, own)
    address = np.frombuffer(mapped, np.uint8).ctypes.data
    _shared[mapped] = _Place(address, len(mapped), own)


def watch_forks() -> None:
    """Call it once, before the task is loaded."""
    remap = ctypes.CDLL(
        None
    ).mmap  # now: a process that was just forked off should look for nothing
    remap.restype = ctypes.c_void_p
    remap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    os.register_at_fork(after_in_child=lambda: _map_privately(remap))


def _map_privately(remap: Callable[..., int]) -> None:
    access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED
    for place in _shared.values():
        mapped = remap(place.address, place.nbytes, access, flags, place.descriptor, 0)
        if mapped != place.address:
            os.write(
                2, b"the model could not be kept from a process that the task has forked off\n"
            )
            os._exit(1)
    _shared.clear()  # a fork of this fork gets what this one has made of it
