"""Gives a process that the task forks off a model of its own, as it has everything else of its own.

A task's model lies in memory that is shared with the owner's process, and a fork would share it too: what a
worker of a DataLoader does to its model would be trained, and what is trained would change under the worker. So
the child maps the same pages anew and copies them, while the fork waits: it has the model as it was then. With
memory of its own, the model would be copied as well, page by page, as soon as either process wrote to it.
"""

import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterator
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


_forking = threading.local()  # has the pipe by which the child says that it has its copy


def watch_forks() -> None:
    """Call it once, before the task is loaded."""
    # Now: a process that was just forked off should look for nothing.
    remap = ctypes.CDLL(None).mmap
    remap.restype = ctypes.c_void_p
    remap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    os.register_at_fork(
        before=_open_pipe,
        after_in_parent=_wait_for_copy,
        after_in_child=lambda: _take_copy(remap),
    )


def _open_pipe() -> None:
    _forking.pipe = os.pipe()


def _wait_for_copy() -> None:
    read, write = _forking.pipe
    os.close(write)
    os.read(read, 1)  # the end of the pipe, which the child brings about, also when it dies
    os.close(read)


def _take_copy(remap: Callable[..., int]) -> None:
    access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED
    for mapping, place in _shared.items():
        mapped = remap(place.address, place.nbytes, access, flags, place.descriptor, 0)
        if mapped != place.address:
            os.write(
                2, b"the model could not be kept from a process that the task has forked off\n"
            )
            os._exit(1)
        for begin, end in _written(place):
            first_bytes = np.frombuffer(mapping, np.uint8, end - begin, begin)[:: mmap.PAGESIZE]
            np.bitwise_or(first_bytes, 0, out=first_bytes)  # to write to a page is to copy it
    _shared.clear()  # a fork of this fork gets what this one has made of it
    for end in _forking.pipe:
        os.close(end)


def _written(place: _Place) -> Iterator[tuple[int, int]]:
    """The parts of the file that have pages: an update in the base's place leaves the rest without."""
    begin = 0
    while begin < place.nbytes:
        try:
            begin = os.lseek(place.descriptor, begin, os.SEEK_DATA)
        except OSError:  # no more
            return
        end = os.lseek(place.descriptor, begin, os.SEEK_HOLE)
        yield begin, end
        begin = end
