"""What Linux says of a process: its processor time, its memory and its children. Reads /proc."""

import os
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError)
_UTIME, _STIME, _STARTTIME = 11, 12, 19  # after the process's name, which may hold spaces


def with_descendants(pid: int) -> list[int]:
    """The process and all that came of it and live."""
    found = [pid]
    with suppress(*_GONE):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(*_GONE):  # a thread that has ended since it was listed
                for child in (task / "children").read_text(encoding="ascii").split():
                    found += with_descendants(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    """The processor time it has used so far, in user mode and in the kernel."""
    with suppress(*_GONE):
        stat = _stat(pid)
        return (int(stat[_UTIME]) + int(stat[_STIME])) / _TICKS
    return 0.0


def started_at(pid: int) -> str:
    """When it started; empty where there is none. Tells it from a later process with its id."""
    with suppress(*_GONE):
        return _stat(pid)[_STARTTIME]
    return ""


def proportional_bytes(pid: int) -> int:
    """Its resident memory, where a page that n processes share counts 1/n."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") * 1024


def peak_resident_bytes(pid: int) -> int:
    """The most resident memory it has had at once, shared pages counted whole."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM:") * 1024


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()


def _kilobytes(path: Path, key: str) -> int:
    with suppress(*_GONE):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(key):
                return int(line.split()[1])
    return 0  # it has ended
