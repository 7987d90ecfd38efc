"""A disk as small as a test wants it, for one process: a mount that nobody else sees."""

import shutil
import subprocess
from pathlib import Path

_UNSHARE = shutil.which("unshare")


def may_mount() -> bool:
    """Whether this account may."""
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return _UNSHARE is not None and not subprocess.run(command, capture_output=True).returncode  # noqa: PLW1510 - the code is the answer


def on_small_disk(directory: Path, size: str) -> list[str]:
    """A command that starts the one behind it with a disk of this size at the directory."""
    mounted = f'mkdir -p "$0" && mount -t tmpfs -o size={size} none "$0" && exec "$@"'
    return ["unshare", "-m", "/bin/bash", "-c", mounted, str(directory)]
