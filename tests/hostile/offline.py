"""Runs `cairn verify` and `cairn ledger` as processes of their own, with little memory and a deadline."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cairn.identity.signing_keys import public_signing_key_text
from tests.unit.cairn.verify.recorded import KEY
from tests.warm.start import run

SECONDS = 60  # for a machine that does much else; the slowest takes five on its own
MEMORY_MEGABYTES = 600
KEY_TEXT = public_signing_key_text(KEY)
_PROGRAM = Path(__file__).with_name("measured.py")


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
    return subprocess.Popen(
        _command(home, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(home),
    )


def _command(home: Path, *arguments: str | Path) -> list[str]:
    return [sys.executable, str(_PROGRAM), str(home / "status"), *map(str, arguments)]


def _environment(home: Path) -> dict[str, str]:
    temporary = home / "temporary"
    temporary.mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(temporary), "OPENBLAS_NUM_THREADS": "1"}


def cairn(home: Path, *arguments: str | Path) -> Ran:
    """Run a command to its end: within the deadline, and with no file left behind."""
    done = run(_command(home, *arguments), env=_environment(home), timeout=SECONDS)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert list((home / "temporary").iterdir()) == []
    most = re.search(r"VmHWM:\s+(\d+) kB", (home / "status").read_text())
    assert most
    return Ran(done.returncode, done.stdout, done.stderr, int(most[1]) >> 10)


def verified(home: Path, path: Path, *options: str | Path) -> Ran:
    """Run `cairn verify`, which ends with 0, or with 1 and a reason, and takes little memory."""
    ran = cairn(home, "verify", path, "--key", KEY_TEXT, *options)
    assert ran.code in {0, 1}, ran.said
    assert ran.code == 0 or any(word in ran.said for word in ("FAILED", "BEHIND"))
    assert ran.megabytes < MEMORY_MEGABYTES
    return ran
