"""Gives up what privileges this process has, for good, and for all that it starts."""

import ctypes
import os

_SET_NO_NEW_PRIVILEGES = 38
_CAPABILITIES_VERSION = 0x20080522
_CAPSET = {"x86_64": 126, "aarch64": 91}

_libc = ctypes.CDLL(None, use_errno=True)


def drop() -> None:
    """Give up every capability, also those of root, and those that a program on the disk could bring.

    Raises OSError.
    """
    checked("prctl", _libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()
    checked("capset", _libc.syscall(_CAPSET[os.uname().machine], header, none))


def checked(what: str, result: int) -> int:
    """The result of a call of the C library. Raises OSError where it is an error."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
