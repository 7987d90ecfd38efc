"""Goes on in a namespace of processes of its own, which ends with this one and takes all that it started with it.

the first     the process that the node has started; it waits and ends as the third did
the second    the namespace's first process: once it ends, the kernel kills every other in there
the third     goes on, and sees no process outside
"""

import ctypes
import os
import signal
from contextlib import suppress
from typing import NoReturn

from owner_node.sandbox.privileges import checked

_NEW_PROCESSES = 0x20000000
_SET_DEATH_SIGNAL, _SET_DUMPABLE = 1, 4
_MOST_DESCRIPTORS = 1 << 16
_SIGNALLED = 128  # and the signal, as shells say it

_libc = ctypes.CDLL(None, use_errno=True)


def enter() -> None:
    """Enter it; returns in the third process only. Raises OSError. The process must have one thread."""
    checked("unshare", _libc.unshare(_NEW_PROCESSES))
    if second := os.fork():
        _end_as(second, passes_on=False)
    _libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    _libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)  # it keeps the capabilities that the third gives up
    if third := os.fork():
        _end_as(third, passes_on=True)
    os.setpgid(0, 0)  # by which it can kill itself and all its own


def _end_as(child: int, *, passes_on: bool) -> NoReturn:
    """Wait for the child, and for what it leaves behind, and end as it did.

    The first process of a namespace dies of no signal, so it passes one on as an exit status.
    """
    os.closerange(3, _MOST_DESCRIPTORS)  # the node's socket is the third's alone
    ended, status = 0, 0
    while ended != child:
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    if passes_on:
        os._exit(code if code >= 0 else _SIGNALLED - code)
    if _SIGNALLED < code < _SIGNALLED + signal.NSIG:
        _die_of(code - _SIGNALLED)
    if code < 0:
        _die_of(-code)
    os._exit(code)


def _die_of(number: int) -> None:
    with suppress(OSError):  # SIGKILL has no handler
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
