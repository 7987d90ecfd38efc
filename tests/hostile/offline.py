"""Runs `cairn verify` and `cairn ledger` as processes of their own, with little memory and a deadline."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cairn.identity.signing_keys import public_signing_key_text
from tests.unit.cairn.verify.recorded import KEY

SECONDS = 60  # for a machine that does much else; the slowest takes five on its own
MEMORY_MEGABYTES = 600
KEY_TEXT = public_signing_key_text(KEY)
# So that a test that fails does not take the machine with it.
_ADDRESS_SPACE = 3 << 30
_PROGRAM = f"""
import atexit, resource, runpy, sys
resource.setrlimit(resource.RLIMIT_AS, ({_ADDRESS_SPACE}, {_ADDRESS_SPACE}))
status = sys.argv.pop(1)
@atexit.register
def _():
    with open("/proc/self/status") as now, open(status, "w") as kept:
        kept.write(now.read())
runpy.run_module("cairn", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Ran:
    """How a command ended, what it wrote, and the most memory that it used."""

    code: int
    out: bytes
    err: bytes
    megabytes: int

    @property
    def said(self) -> str:
        return (self.out + self.err).decode()


def started(home: Path, *arguments: str | Path) -> "subprocess.Popen[bytes]":
    """Begin a command of `cairn`, whose temporary files go into a folder of the test."""
    temporary = home / "temporary"
    temporary.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, home / "status", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary), "OPENBLAS_NUM_THREADS": "1"},
    )


def cairn(home: Path, *arguments: str | Path) -> Ran:
    """Run a command to its end: within the deadline, and with no file left behind."""
    process = started(home, *arguments)
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise AssertionError(f"{arguments} did not end within {SECONDS} seconds") from None
    assert b"Traceback" not in err, err.decode()
    assert list((home / "temporary").iterdir()) == []
    most = re.search(r"VmHWM:\s+(\d+) kB", (home / "status").read_text())
    assert most
    return Ran(process.returncode, out, err, int(most[1]) >> 10)


def verified(home: Path, path: Path, *options: str | Path) -> Ran:
    """Run `cairn verify`, which ends with 0, or with 1 and a reason, and takes little memory."""
    ran = cairn(home, "verify", path, "--key", KEY_TEXT, *options)
    assert ran.code in {0, 1}, ran.said
    assert ran.code == 0 or any(word in ran.said for word in ("FAILED", "BEHIND"))
    assert ran.megabytes < MEMORY_MEGABYTES
    return ran
