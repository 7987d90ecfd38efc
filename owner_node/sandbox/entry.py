"""What a training process in a sandbox is started by: it enters the sandbox, and only then imports the rest.

The first argument says how, as JSON: {"kind", "reads", "writes", "root"}. Those that follow are for
`owner_node.training.worker`; without them this is a trial, which prints the paths that the sandbox shows.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from owner_node.sandbox import landlock, namespaces, privileges, system_calls
from owner_node.training.memory_shortage import go_first

_SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/proc"),
    *("/sys/devices", "/sys/class", "/sys/bus", "/sys/module", "/sys/fs/cgroup"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives"),
    *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/localtime", "/etc/timezone"),
    *("/etc/mime.types", "/etc/fonts", "/etc/OpenCL"),
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_GPUS = ("dev/nvidia*", "dev/kfd", "dev/dri")

_MACHINES = {"x86_64", "aarch64"}  # whose numbers of system calls are known here

Spec = Mapping[str, Any]


def shown_for_reading(spec: Spec) -> list[Path]:
    """Every path that is shown: the task's own, the system's libraries, and where Python imports from."""
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    python = [sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path]
    ours = Path(__file__).parents[1]
    named = map(Path, dict.fromkeys([*spec["reads"], *_SYSTEM, *libraries, *python]))
    rocm = Path("/opt").glob("rocm*")
    paths = (*named, *rocm, ours, ours.parent / "cairn")
    return [path for path in paths if path.is_absolute() and path != Path("/")]


def enter(spec: Spec) -> list[Path]:
    """Enter the sandbox and return the paths that may be read in it. Raises OSError."""
    system = os.uname()
    if system.sysname != "Linux" or system.machine not in _MACHINES:
        raise OSError(0, f"there is none for {system.sysname} on {system.machine}")
    reads = shown_for_reading(spec)
    gpus = [path for pattern in _GPUS for path in Path("/").glob(pattern)]
    devices = [*map(Path, _DEVICES), *gpus]
    writes = [*map(Path, spec["writes"])]
    if spec["kind"] == "namespaces":
        # A device is written to all the same.
        namespaces.enter([*reads, *devices], writes, Path(spec["root"]))
        privileges.drop()
        landlock.keep_signals_inside()
        system_calls.refuse_in_namespaces()
    else:
        privileges.drop()
        landlock.enter(reads, [*writes, *devices, Path("/dev/shm")])  # noqa: S108 - in namespaces it is an empty one
        system_calls.refuse_under_landlock()
    return reads


def main(arguments: Sequence[str]) -> None:
    spec, *rest = arguments
    go_first()  # in the sandbox it cannot be said any more
    try:
        reads = enter(json.loads(spec))
    except OSError as error:
        sys.exit(f"the sandbox cannot be entered: {error.strerror}")
    if not rest:
        print(json.dumps([os.fspath(path) for path in reads]))  # noqa: T201 - what a trial is for
        return
    os.chdir(os.environ["TMPDIR"])
    # Not before: it starts threads, which would stay outside.
    from owner_node.training import worker

    worker.main(rest)


if __name__ == "__main__":
    main(sys.argv[1:])
