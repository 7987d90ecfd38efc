"""What a process asks of Linux so that others can be forked off for it (prctl(2))."""

import ctypes
from pathlib import Path

NAME = "warm-parent"  # of the processes that others are forked off
_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36


def adopt_orphans() -> None:
    """Become the parent of every process below this one that loses its own."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def is_orphan(pid: int) -> bool:
    """Whether it has ended, and was a training process or a parent of some, whose own parent is gone."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition(")")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return rest.split()[0] == "Z" and name.partition("(")[2] in {NAME, "worker.py"}


def be_called(name: str) -> None:
    """Give this process a name for `ps`, of 15 bytes at the most."""
    _prctl(_PR_SET_NAME, name.encode()[:15])


def _prctl(option: int, value: int | bytes) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
