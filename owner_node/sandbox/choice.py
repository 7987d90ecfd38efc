"""Chooses the sandbox that a task runs in: which kind this machine can have, and what the task may read there.

The owner's node asks for it at its start, by a trial in a process of its own; the training process then enters it
(entry.py). What cannot be had is a fault: a task never runs with less than its owner's file says.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from cairn.errors import UsageError
from cairn.runtime.timeouts import IDLE_SECONDS
from cairn.tasks.environment import passed_on
from owner_node.sandbox.clearing import clear

# In this order: with namespaces a DataLoader may have workers.
Kind = Literal["namespaces", "landlock"]

HOLDS: dict[Kind, str] = {
    "namespaces": "no network, and only the files that it needs (Linux namespaces)",
    "landlock": (
        "no sockets, and only the files that it needs (Landlock and seccomp); a DataLoader can have no"
        " workers, so set num_workers=0"
    ),
}


@dataclass(frozen=True)
class Sandbox:
    """A kind that this machine can have, and the paths that the task may read beside the libraries."""

    kind: Kind
    reads: tuple[str, ...]

    def spec(self, place: Path) -> str:
        """The first argument of owner_node.sandbox.entry, for a process with this directory (see `furnish`)."""
        return json.dumps(
            {
                "kind": self.kind,
                "reads": self.reads,
                "writes": [os.fspath(place / "work")],
                "root": os.fspath(place / "root"),
            }
        )


def furnish() -> Path:
    """Make the directory of one process: `work` is where it may write, `root` what its root is built in."""
    place = Path(tempfile.mkdtemp(prefix="cairn-task-")).resolve()
    (place / "work").mkdir()
    (place / "root").mkdir()
    return place


def sandbox_for(file: str, data: Path, reads: Collection[Path]) -> Sandbox:
    """The sandbox of a task. Raises UsageError where this machine can have none."""
    own = [Path(file)] if file.endswith(".py") else []
    paths = tuple(os.fspath(path.absolute()) for path in (*own, data, *reads))
    failures = []
    for kind in get_args(Kind):
        sandbox = Sandbox(kind, paths)
        try:
            shown(sandbox)
        except UsageError as error:
            failures.append(f"{kind}: {error}")
        else:
            return sandbox
    raise UsageError(
        f"this machine can have no sandbox ({'; '.join(failures)}). Let this account make user namespaces, or"
        ' use Linux 6.2 or later with Landlock; or set sandbox = "off", and the task can open what this account can'
    )


@cache
def shown(sandbox: Sandbox) -> Sequence[Path]:
    """Try it, and say which paths can be read in it. Raises UsageError with the kernel's reason."""
    place = furnish()
    try:
        tried = subprocess.run(
            [sys.executable, "-P", "-m", "owner_node.sandbox.entry", sandbox.spec(place)],
            capture_output=True,
            check=False,
            env=passed_on(os.environ),
            text=True,
            timeout=IDLE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise UsageError("the trial did not end") from None
    finally:
        clear(place)
    if tried.returncode != 0:
        *_, reason = tried.stderr.strip().splitlines() or ["it ended without a word"]
        raise UsageError(reason.removeprefix("the sandbox cannot be entered: "))
    return [Path(path) for path in json.loads(tried.stdout)]


def check_hides(sandbox: Sandbox, secrets: Collection[Path]) -> None:
    """Raise UsageError where one of these paths can be read in the sandbox."""
    for secret in secrets:
        for path in shown(sandbox):
            if secret.resolve().is_relative_to(path.resolve()):
                raise UsageError(
                    f"{secret} lies in {path}, which the task may read; move one of the two, so that the"
                    " sandbox can hide it"
                )
