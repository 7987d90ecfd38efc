"""Has the kernel refuse a task calls that reach past its sandbox, with a seccomp filter.

    to its node       limits and priorities of other processes: a limit of no time would end the node
    to keyrings       the session's is the node's as well, and may hold Kerberos tickets
    to networks       vsock and others that no network namespace divides; io_uring, which makes sockets past a filter
    to others' files  under Landlock, which lets modes, owners, times and attributes be changed; and every socket

What is refused has EACCES, so a program sees an error and goes on.
"""

import ctypes
import os
import struct

from owner_node.sandbox.privileges import checked

_SET_SECCOMP, _FILTER = 22, 2

# The architecture as the kernel's audit names it.
_AUDITED = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SOCKET = {"x86_64": 41, "aarch64": 198}
_SOCKETPAIR = {"x86_64": 53, "aarch64": 199}
_CONNECT = {"x86_64": 42, "aarch64": 203}
_PRLIMIT, _SETPRIORITY = {"x86_64": 302, "aarch64": 261}, {"x86_64": 141, "aarch64": 140}
# io_uring_setup; add_key, request_key and keyctl
_ALWAYS = {"x86_64": (425, 248, 249, 250), "aarch64": (425, 217, 218, 219)}
# chmod, chown, utime and setxattr, each with its kin, and file_setattr
_ON_FILES = {
    "x86_64": (
        *(90, 91, 268, 452, 92, 93, 94, 260, 132, 235, 261, 280),
        *(188, 189, 190, 197, 198, 199, 463, 466, 469),
    ),
    "aarch64": (53, 52, 452, 54, 55, 88, *range(5, 8), *range(14, 17), 463, 466, 469),
}

_X32 = 0x40000000
_ALLOWED, _REFUSED = 0x7FFF0000, 0x00050000 | 13  # EACCES
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24  # in struct seccomp_data
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
# Each network namespace has its own of these.
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_STREAM, _SOCK_KIND = 1, 0xF

# Each is (code, how many to skip where it is true, and where it is false, value).
Instruction = tuple[int, int, int, int]


def refuse_in_namespaces() -> None:
    """For a process that has a file system and a network of its own. Raises OSError."""
    machine = os.uname().machine
    families = _AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK
    _filter([*_common(machine), *_only(_SOCKET[machine], _FIRST, *families)])


def refuse_under_landlock() -> None:
    """For a process that shares the machine's: also every socket but pairs of Unix streams, which are connected
    already and cannot be connected anew. Raises OSError.
    """
    machine = os.uname().machine
    refused = (_SOCKET[machine], _CONNECT[machine], *_ON_FILES[machine])
    never = [each for number in refused for each in _never(number)]
    _filter([*_common(machine), *never, *_only_stream_pairs(_SOCKETPAIR[machine])])


def _common(machine: str) -> list[Instruction]:
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _AUDITED[machine]),
        (_RETURN, 0, 0, _REFUSED),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _REFUSED),
        *(each for number in _ALWAYS[machine] for each in _never(number)),
        # A process is 0 where it means itself, as the C library says it.
        *_only(_PRLIMIT[machine], _FIRST, 0),
        *_only(_SETPRIORITY[machine], _SECOND, 0),
    ]


def _never(number: int) -> list[Instruction]:
    return [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSED)]


def _only(number: int, argument: int, *values: int) -> list[Instruction]:
    """This call only where its argument has one of the values."""
    body = [
        (_LOAD, 0, 0, argument),
        *(each for value in values for each in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOWED))),
        (_RETURN, 0, 0, _REFUSED),
    ]
    return [(_EQUAL, 0, len(body), number), *body]


def _only_stream_pairs(number: int) -> list[Instruction]:
    body = [
        (_LOAD, 0, 0, _FIRST),
        (_EQUAL, 0, 4, _AF_UNIX),
        (_LOAD, 0, 0, _SECOND),
        (_AND, 0, 0, _SOCK_KIND),
        (_EQUAL, 0, 1, _SOCK_STREAM),
        (_RETURN, 0, 0, _ALLOWED),
        (_RETURN, 0, 0, _REFUSED),
    ]
    return [(_EQUAL, 0, len(body), number), *body]


def _filter(program: list[Instruction]) -> None:
    """Have it decide on every call from now on, of this process and of those that it starts."""
    program = [*program, (_RETURN, 0, 0, _ALLOWED)]
    instructions = b"".join(struct.pack("=HBBI", *each) for each in program)
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    head = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    checked("seccomp", libc.prctl(_SET_SECCOMP, _FILTER, head, 0, 0))
