"""Gives this process a file system of a few paths and a network of nothing, in Linux namespaces of its own.

It needs no privilege where the kernel lets an account make user namespaces. The new root is an empty tmpfs in which
the paths are mounted, all but a few read-only; then it takes the place of the old one, which nothing in here can
reach any more. No file outside can be named, so neither can a Unix socket.
"""

import ctypes
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from owner_node.sandbox import process_namespace
from owner_node.sandbox.privileges import checked

_NEW = 0x10000000 | 0x00020000 | 0x40000000 | 0x08000000  # user, mount, network, IPC
_BIND, _RECURSIVE, _PRIVATE = 1 << 12, 1 << 14, 1 << 18
_DETACH = 2
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_READ_ONLY, _NO_SUID = 1, 2
_NO_SUID_DEVICES_OR_PROGRAMS = 2 | 4 | 8
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def enter(reads: Sequence[Path], writes: Sequence[Path], root: Path) -> None:
    """Enter them. `root` is an empty directory to build the new root in. Raises OSError.

    Returns in another process (process_namespace.py), of one thread, as this one must be. The paths may be files, directories and devices; those that do not exist
    are left out.
    """
    account, group = os.getuid(), os.getgid()
    checked("unshare", _libc.unshare(_NEW))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{account} {account} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    process_namespace.enter()
    _mount(None, Path("/"), None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", 0)
    shown: list[Path] = []
    for path in _spelled(reads):
        if not any(path.is_relative_to(other) for other in shown):
            shown.append(path)
            _show(path, root, read_only=True)
    _show_own_processes(root / "proc")
    for path in _spelled(writes):
        _show(path, root, read_only=False)
    shared = root / "dev/shm"
    shared.mkdir(parents=True, exist_ok=True)
    _mount("tmpfs", shared, "tmpfs", 0)
    _set_attributes(root, 0, _READ_ONLY)
    os.chdir(root)
    checked("pivot_root", _libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."))
    checked("umount", _libc.umount2(b".", _DETACH))
    os.chdir("/")


def _spelled(paths: Iterable[Path]) -> list[Path]:
    """The paths as they are given and as they are without symbolic links, the shortest first."""
    there = [path for path in paths if path.exists()]
    both = {*map(Path.absolute, there), *map(Path.resolve, there)}
    return sorted(both, key=lambda path: len(path.parts))


def _show(path: Path, root: Path, *, read_only: bool) -> None:
    place = root / path.relative_to("/")
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            place.mkdir()
        else:
            place.touch()
    _mount(path, place, None, _BIND | _RECURSIVE)
    _set_attributes(place, _AT_RECURSIVE, _NO_SUID | (_READ_ONLY if read_only else 0))


def _show_own_processes(place: Path) -> None:
    """Lay a /proc of its own over the machine's, which a container may not let it have."""
    with suppress(OSError):
        _mount("proc", place, "proc", _NO_SUID_DEVICES_OR_PROGRAMS)
        _set_attributes(place, 0, _READ_ONLY)


def _mount(source: Path | str | None, target: Path, kind: str | None, flags: int) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    checked(f"mount {target}", _libc.mount(*words, ctypes.c_ulong(flags), None))


def _set_attributes(target: Path, flags: int, attributes: int) -> None:
    given = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    done = _libc.syscall(
        _MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), flags, given, ctypes.sizeof(given)
    )
    checked(f"mount_setattr {target}", done)
