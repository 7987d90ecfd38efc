"""Has the kernel refuse this process every file but a few, with Landlock, and every socket, with a seccomp filter.

It needs no privilege, so it works in containers that may make no namespaces. It also keeps this process from
tracing those outside, and so from reading their memory. Landlock: Linux 6.2 or later, with it among the kernel's
security modules (https://docs.kernel.org/userspace-api/landlock.html).
"""

import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from owner_node.privileges import checked

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1
_LEAST_VERSION = 3  # before it, files could be truncated all the same
_SCOPES_VERSION = 6
_SIGNALS = 2

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_ALL = (1 << 15) - 1  # of version 3
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_READING = _EXECUTE | _READ_FILE | _READ_DIR

_SET_SECCOMP, _FILTER = 22, 2

_libc = ctypes.CDLL(None, use_errno=True)


def enter(reads: Sequence[Path], writes: Sequence[Path]) -> None:
    """Restrict this process and all that it starts, where it has one thread and gave up its privileges.

    Raises OSError.
    """
    if _version() < _LEAST_VERSION:
        raise OSError(
            0, f"Landlock: the kernel has version {_version()}, and {_LEAST_VERSION} is needed"
        )
    scopes = _version() >= _SCOPES_VERSION
    ruleset = _ruleset(struct.pack("=QQQ", _ALL, 0, _SIGNALS)[: 24 if scopes else 8])
    for paths, access in ((reads, _READING), (writes, _ALL)):
        for path in filter(Path.exists, paths):
            _allow(ruleset, path, access)
    _restrict(ruleset)
    _refuse_sockets()


def keep_signals_inside() -> None:
    """Let this process send signals only to those that it starts, where the kernel can: Linux 6.12."""
    if _version() >= _SCOPES_VERSION:
        _restrict(_ruleset(struct.pack("=QQQ", 0, 0, _SIGNALS)))


def _version() -> int:
    version: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    return max(version, 0)


def _ruleset(attributes: bytes) -> int:
    made = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    return checked("landlock_create_ruleset", made)


def _restrict(ruleset: int) -> None:
    checked("landlock_restrict_self", _libc.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _allow(ruleset: int, path: Path, access: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not path.is_dir():
            access &= _ON_FILES
        rule = struct.pack("=Qi", access, descriptor)
        checked(
            f"landlock_add_rule {path}", _libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
        )
    finally:
        os.close(descriptor)


# The architecture as the kernel's audit names it, and the numbers of its calls.
_MACHINES = {
    "x86_64": (0xC000003E, {"socket": 41, "connect": 42, "socketpair": 53}),
    "aarch64": (0xC00000B7, {"socket": 198, "connect": 203, "socketpair": 199}),
}
_IO_URING_SETUP = 425
_X32 = 0x40000000
_ALLOWED, _REFUSED = 0x7FFF0000, 0x00050000 | 13  # EACCES
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24  # in struct seccomp_data
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_AF_UNIX, _SOCK_STREAM, _SOCK_KIND = 1, 1, 0xF


def _refuse_sockets() -> None:
    """No socket but pairs of Unix streams, which are connected already and cannot be connected anew.

    io_uring could make sockets past the filter, so it is refused too.
    """
    program = _filter()
    instructions = b"".join(struct.pack("=HBBI", *each) for each in program)
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    head = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    checked("seccomp", _libc.prctl(_SET_SECCOMP, _FILTER, head, 0, 0))


def _filter() -> list[tuple[int, int, int, int]]:
    architecture, calls = _MACHINES[os.uname().machine]
    # Each is (code, how many to skip where it is true, and where it is false, value).
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 0, 12, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 10, 0, _X32),
        (_EQUAL, 9, 0, calls["socket"]),
        (_EQUAL, 8, 0, calls["connect"]),
        (_EQUAL, 7, 0, _IO_URING_SETUP),
        (_EQUAL, 0, 5, calls["socketpair"]),
        (_LOAD, 0, 0, _FIRST),
        (_EQUAL, 0, 4, _AF_UNIX),
        (_LOAD, 0, 0, _SECOND),
        (_AND, 0, 0, _SOCK_KIND),
        (_EQUAL, 0, 1, _SOCK_STREAM),
        (_RETURN, 0, 0, _ALLOWED),
        (_RETURN, 0, 0, _REFUSED),
    ]
