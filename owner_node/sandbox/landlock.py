"""Has the kernel refuse this process every file but a few, with Landlock; see system_calls.py for the rest.

It needs no privilege, so it works in containers that may make no namespaces. It also keeps this process from
tracing those outside, and so from reading their memory. Landlock: Linux 6.2 or later, with it among the kernel's
security modules (https://docs.kernel.org/userspace-api/landlock.html).
"""

import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from owner_node.sandbox.privileges import checked

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
