"""Freed memory stays with the process, and is not taken from the system anew for every chunk."""

import ctypes
import os
import subprocess
import sys
from unittest import mock

import pytest

from cairn.runtime.malloc import keep_freed_memory

GLIBC = "CS_GNU_LIBC_VERSION" in os.confstr_names
PAGE = os.sysconf("SC_PAGE_SIZE")
BUFFER = 2 << 20
TIMES = 50

# Prints how many pages the process has to ask for while it takes and frees buffers again and again, and
# how many it holds after the last is freed.
PROGRAM = f"""
import resource
from pathlib import Path
from cairn.runtime.malloc import keep_freed_memory
if KEEP:
    keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

def take(count):
    return [bytearray(b"x" * {BUFFER}) for _ in range(count)]

before = resident()
for _ in range(4):
    buffers = take(4)
    del buffers
held = resident() - before
begun = faults()
for _ in range({TIMES}):
    buffers = take(1)
    del buffers
print(faults() - begun, held)
"""


def pages(*, keep: bool) -> tuple[int, int]:
    """The pages that were asked for, and those that were held."""
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("KEEP", str(keep))],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    asked_for, held = map(int, done.stdout.split())
    return asked_for, held


@pytest.mark.skipif(not GLIBC, reason="another C library has other settings")
def test_a_buffer_that_is_freed_serves_the_next_without_a_page_of_the_system() -> None:
    asked_for, held = pages(keep=True)
    assert asked_for < BUFFER // PAGE  # fewer than for a single buffer of all
    assert held * PAGE >= 4 * BUFFER


@pytest.mark.skipif(not GLIBC, reason="another C library has other settings")
def test_without_the_settings_every_buffer_is_taken_from_the_system() -> None:
    """The control: else the claim above would say nothing."""
    asked_for, held = pages(keep=False)
    assert asked_for > TIMES  # large pages, where there are any, are one fault each
    assert held * PAGE < 4 * BUFFER


@pytest.mark.parametrize("error", [OSError, TypeError])
def test_a_system_without_mallopt_is_left_as_it_is(error: type[Exception]) -> None:
    with mock.patch.object(ctypes, "CDLL", side_effect=error):
        keep_freed_memory()
    with mock.patch.object(ctypes, "CDLL", return_value=object()):
        keep_freed_memory()
