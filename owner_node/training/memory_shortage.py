"""Has a task's process end before its node where the machine has no memory left."""

from contextlib import suppress
from pathlib import Path

_SCORE = 500  # thousandths of the machine's memory that it counts for beside its own: proc(5), oom_score_adj


def go_first() -> None:
    """Say so of this process and of all that it starts; where there is no such thing, nothing is done."""
    file = Path("/proc/self/oom_score_adj")
    with suppress(OSError, ValueError):
        file.write_text(str(max(_SCORE, int(file.read_text()))))
