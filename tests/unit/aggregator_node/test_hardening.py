"""The process that is started anew so that what it frees is overwritten."""

import json
import os
import subprocess
import sys

import pytest

from aggregator_node.hardening import erase_freed_memory

GLIBC = "CS_GNU_LIBC_VERSION" in os.confstr_names
PROGRAM = """
import sys, os, json, threading
from aggregator_node.hardening import erase_freed_memory
erases = erase_freed_memory()
print(json.dumps([erases, sys.argv[1:], os.environ["GLIBC_TUNABLES"], os.environ["PYTHONMALLOC"], os.getpid()]))
"""


def run(*arguments: str, **environment: str) -> list[object]:
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    said: list[object] = json.loads(output)
    pid = said.pop()
    assert pid == child.pid  # so that signals and supervisors find it
    return said


@pytest.mark.skipif(not GLIBC, reason="another C library cannot do that")
def test_the_same_program_goes_on_in_the_same_process_with_the_same_arguments() -> None:
    erases, arguments, tunables, malloc = run("--config", "a file.toml")
    assert (erases, arguments, malloc) == (True, ["--config", "a file.toml"], "malloc")
    assert "glibc.malloc.perturb=" in str(tunables)


@pytest.mark.skipif(not GLIBC, reason="another C library cannot do that")
def test_settings_of_the_c_library_that_were_given_are_kept() -> None:
    tunables = str(run(GLIBC_TUNABLES="glibc.malloc.arena_max=2")[2])
    assert tunables.startswith("glibc.malloc.arena_max=2:glibc.malloc.perturb=")
    done = run(GLIBC_TUNABLES=tunables, PYTHONMALLOC="malloc")
    assert done[2] == tunables  # it is started anew once
    assert run(GLIBC_TUNABLES=tunables, PYTHONMALLOC="pymalloc")[3] == "malloc"


@pytest.mark.skipif(not GLIBC, reason="another C library cannot do that")
def test_what_is_freed_is_overwritten() -> None:
    """The bytes of a freed update, looked at where they were."""
    program = """
import ctypes, os
from aggregator_node.hardening import erase_freed_memory
assert erase_freed_memory()
secret = os.urandom(32)
update = bytearray(secret * 2000)
address = ctypes.addressof(ctypes.c_char.from_buffer(update)) + 1024
assert ctypes.string_at(address, 32) in secret * 3
del update
assert ctypes.string_at(address, 4096).find(secret[:8]) == -1
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr_names", {})
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it was started anew"))
    assert not erase_freed_memory()
